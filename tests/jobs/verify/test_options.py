"""What verify refuses, and when: at once, in two lines, before a model is read; and records that are run again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import r1quant
from r1quant.jobs.verify import opening, pair
from tests.conftest import Ran, Run

SMALL = ("--windows", "4", "--seq-len", "32")
METRICS = ("tokens", "perplexity", "kl", "delta_p_rms", "top1", "by_class", "gates", "hashes", "options")

BAD = [
    ("--windows", "-1"),
    ("--windows", "x"),
    ("--windows", "0"),
    ("--seq-len", "1"),
    ("--seq-len", "0"),
    ("--seq-len", "-5"),
    ("--text", ""),
    ("--aime", ""),
    ("--aime", "mini", "--limit", "0"),
    ("--aime", "mini", "--limit", "-3"),
    ("--aime", "mini", "--samples", "0"),
    ("--aime", "mini", "--max-tokens", "0"),
    ("--temperature", "-0.1"),
    ("--temperature", "nan"),
    ("--temperature", "inf"),
    ("--top-p", "0"),
    ("--top-p", "1.01"),
    ("--top-p", "nan"),
    ("--seed", "-1"),
    ("--dtype", "int8"),
    ("--concurrency", "0"),
    ("--patience", "-1"),
    ("--patience", "nan"),
    ("--patience", "inf"),
    ("--tasks", ","),
    ("--tasks", "gsm8k,"),
    ("--task-limit", "0"),
    ("--task-tokens", "0"),
    ("--backend", "openai"),
    ("--baseline-backend", "openai"),
    ("--base-url", "http://127.0.0.1:9/v1", "--backend", "torch"),
    ("--baseline-url", "http://127.0.0.1:9/v1", "--baseline-backend", "auto"),
    ("--gate", ""),
    ("--gate", "kl.mean"),
    ("--gate", "kl.mean<"),
    ("--gate", "kl.mean<nan"),
    ("--gate", "kl.mean=0"),
    ("--gate", "kl.meen<1"),
    ("--gate", "aime.delta>0"),
    ("--windows", "0", "--aime", "mini", "--gate", "kl.mean<1"),
    ("--gate", "kl.mean<1", "--gate", "health.formats.quantized.json_valid>0"),
    ("--from", "record.json"),
    ("--no-such-option",),
    ("out", "out"),
]
LATER = [
    ("--device", "tpu"),
    ("--backend", "vllm"),
    ("--baseline-backend", "vllm"),
    ("--backend", "onnxruntime"),
    ("--backend", "llamacpp"),
    ("--baseline-backend", "llamacpp"),
    ("--backend", "mockery"),
    ("--backend", "mock:2"),
    ("--backend", "mock:accuracy=0.5,accuracy=0.6"),
]


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def touched(*_: object, **__: object) -> None:
        raise AssertionError("it went on")

    monkeypatch.setattr(opening, "open_artifact", touched)
    return touched


@pytest.fixture(scope="module")
def made(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and the same in 4 bits, which knows it."""
    folder = tmp_path_factory.mktemp("made")
    shutil.copytree(llama, folder / "model")
    r1quant.quantize(folder / "model", folder / "out", bits=4, group_size=32, method="rtn")
    return folder


@pytest.fixture
def place(made: Path, in_tmp: Path, text_file: Path) -> Path:
    """A copy of it, in the current folder."""
    shutil.copytree(made, in_tmp, dirs_exist_ok=True)
    shutil.copy(text_file, in_tmp / "text.txt")
    return in_tmp


@pytest.mark.usefixtures("never")
@pytest.mark.parametrize("words", BAD, ids=" ".join)
def test_a_bad_option_is_refused_before_anything_is_read(run: Run, words: tuple[str, ...]) -> None:
    ran = run("verify", "out", *words)
    assert ran.code == 2 and len(ran.error) == 2 and not ran.out


@pytest.mark.usefixtures("never")
@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (("--gate", "kl<0.05"), "there is no number kl to set a gate on", "did you mean kl.mean?"),
        (("--gate", "aime.delta.low>-0.02"), "aime.delta.low is not measured with these options",
         "add --aime mini, or other problems"),
        (("--gate", "health.formats.quantized.json_valid>0.9"),
         "health.formats.quantized.json_valid is not measured with these options", "add --health"),
        (("--gate", "tasks.delta.gsm8k.acc.mean>0"), "tasks.delta.gsm8k.acc.mean is not measured with these options",
         "add --tasks with the names of tasks"),
        (("--windows", "0", "--health", "--gate", "top1>0.9"), "top1 is not measured with these options",
         "leave out --windows 0"),
    ],
)  # fmt: skip
def test_a_gate_that_cannot_be_judged_says_what_is_meant_or_missing(
    run: Run, words: tuple[str, ...], message: str, hint: str
) -> None:
    ran = run("verify", "out", *words)
    assert ran.code == 2 and ran.error == [message, hint]


@pytest.mark.parametrize("words", LATER, ids=" ".join)
def test_what_depends_on_the_model_is_refused_before_it_computes(
    run: Run, place: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    from r1quant.backends.torch import TorchModel

    monkeypatch.setattr(TorchModel, "final_states", lambda *_: pytest.fail("it went on"))
    ran = run("verify", "out", "--text", "text.txt", *SMALL, *words)
    assert ran.code == 2 and len(ran.error) == 2 and not ran.out


@pytest.mark.parametrize(
    "words", [("--text", "missing.txt"), ("--text", "model"), ("--seq-len", "100000", "--text", "text.txt")]
)
def test_a_text_that_cannot_be_used(run: Run, place: Path, words: tuple[str, ...]) -> None:
    ran = run("verify", "out", *words)
    assert ran.code == 3 and len(ran.error) == 2


def test_problems_that_are_not_there_are_missed_before_the_text_is_scored(
    run: Run, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair, "open_runtime", lambda *_, **__: pytest.fail("a model was opened"))
    ran = run("verify", "out", "--text", "text.txt", *SMALL, "--aime", "missing.jsonl")
    assert ran.code == 3 and "missing.jsonl is neither" in ran.error[0]


def test_a_class_of_tokens_that_the_text_does_not_have(run: Run, place: Path) -> None:
    words = ("verify", "out", "--text", "text.txt", *SMALL, "--gate", "by_class.thinking.kl.mean<1")
    ran = run(*words, "--json")
    assert ran.code == 1 and set(ran.json["by_class"]) == {"other"}
    assert ran.json["gates"] == [{"gate": "by_class.thinking.kl.mean<1", "value": None, "passed": False}]
    assert "NaN" not in ran.out and '"value": null' in ran.out
    shown = run(*words)
    assert shown.code == 1 and "not measured" in shown.out and "FAILED" in shown.out


def test_an_interval_of_one_window_passes_no_gate(run: Run, place: Path) -> None:
    ran = run("verify", "out", "--text", "text.txt", "--windows", "1", "--seq-len", "32", "--gate", "kl.mean.high<9")
    assert ran.code == 1 and "not measured" in ran.out


def test_the_classes_of_a_text_that_reasons(run: Run, place: Path) -> None:
    """Every predicted token is of one class, and the classes make up the whole."""
    Path("chain.txt").write_text("<think>the number divides seven</think>an odd divisor<|end|>" * 40, "utf-8")
    ran = run("verify", "out", "--text", "chain.txt", *SMALL, "--gate", "by_class.thinking.kl.mean<5", "--json")
    assert ran.code == 0, ran.err
    classes = ran.json["by_class"]
    assert set(classes) == {"other", "thinking", "answer"}
    assert sum(part["tokens"] for part in classes.values()) == ran.json["tokens"] == 4 * 31
    mean = sum(part["tokens"] * part["kl"]["mean"] for part in classes.values()) / ran.json["tokens"]
    assert mean == pytest.approx(ran.json["kl"]["mean"])


def recorded(run: Run, *words: object) -> dict[str, Any]:
    ran = run("verify", "out", "--text", "text.txt", *SMALL, *words, "--record", "record.json", "--json")
    assert ran.code == 0, ran.err
    assert json.loads(Path("record.json").read_text("utf-8")) == ran.json
    return ran.json


def again(run: Run, *words: object) -> Ran:
    return run("verify", "--from", "record.json", *words)


def rewrite(**changes: Any) -> None:
    path = Path("record.json")
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")


def test_a_record_is_repeated(run: Run, place: Path) -> None:
    record = recorded(run, "--gate", "kl.mean<5")
    Path("r1quant.toml").write_text('gates = ["top1>2"]\n')
    repeated = again(run, "--json", "--record", "second.json")
    assert repeated.code == 0 and {n: repeated.json[n] for n in METRICS} == {n: record[n] for n in METRICS}
    assert repeated.json["text"] == record["text"] | {"baseline_cached": True}
    assert json.loads(Path("second.json").read_text("utf-8")) == repeated.json
    rewrite(options=record["options"] | {"gate": ["top1>2"]})
    assert again(run).code == 1, "its gates are judged again too"


def test_a_record_of_answers_is_repeated(run: Run, place: Path) -> None:
    words = ("--windows", "0", "--backend", "mock:0.5", "--baseline-backend", "mock:0.9", "--limit", "20")
    record = recorded(run, "--aime", "mini", *words, "--samples", "2", "--top-p", "0.8", "--health")
    repeated = again(run, "--json")
    assert repeated.code == 0, repeated.err
    for name in ("aime", "health", "options"):
        assert repeated.json[name] == record[name]


@pytest.mark.parametrize("words", [("out",), ("--windows", "4"), ("--gate", "kl.mean<1"), ("--baseline", "model")])
def test_a_record_is_repeated_as_it_was_or_not_at_all(run: Run, place: Path, words: tuple[str, ...]) -> None:
    recorded(run)
    refused = again(run, *words)
    assert refused.code == 2 and "--from repeats a run as it was" in refused.error[0]


@pytest.mark.parametrize(("name", "folder"), [("baseline", "model"), ("quantized", "out")])
def test_a_model_that_has_changed_since(
    run: Run, place: Path, monkeypatch: pytest.MonkeyPatch, name: str, folder: str
) -> None:
    recorded(run)
    weights = place / folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-2] ^= 0x01
    weights.write_bytes(bytes(content))
    monkeypatch.setattr(pair, "open_runtime", lambda *_, **__: pytest.fail("it was measured"))
    refused = again(run)
    assert refused.code == 3 and f"the {name} is not the one that was measured" in refused.error[0]


def test_a_tokenizer_that_has_changed_since(run: Run, place: Path) -> None:
    recorded(run)
    path = place / "model" / "tokenizer_config.json"
    path.write_text(path.read_text("utf-8") + "\n", "utf-8")
    refused = again(run)
    assert refused.code == 3 and "the tokenizer is not the one that was measured" in refused.error[0]


def test_a_text_or_problems_that_have_changed_since(run: Run, place: Path) -> None:
    recorded(run)
    Path("text.txt").write_text("Something else. " + Path("text.txt").read_text("utf-8"), "utf-8")
    refused = again(run)
    assert refused.code == 3 and "the text is not the one that was measured" in refused.error[0]
    Path("problems.jsonl").write_text('{"problem": "1 + 1", "answer": 2}\n{"problem": "1 + 2", "answer": 3}\n')
    recorded(run, "--windows", "0", "--aime", "problems.jsonl", "--backend", "mock", "--baseline-backend", "mock")
    assert again(run).code == 0
    Path("problems.jsonl").write_text('{"problem": "1 + 1", "answer": 2}\n{"problem": "1 + 2", "answer": 4}\n')
    refused = again(run)
    assert refused.code == 3 and "the aime is not the one that was measured" in refused.error[0]


def test_what_is_no_record(run: Run, place: Path) -> None:
    record = recorded(run)
    rewrite(options=record["options"] | {"colour": "red"})
    refused = again(run)
    assert refused.code == 2 and "unknown option 'colour'" in refused.error[0]
    rewrite(options=record["options"] | {"top_p": 2.0})
    assert again(run).code == 2
    lies: tuple[dict[str, Any], ...] = (
        {"schema": "r1quant.verification/1"},
        {"options": None},
        {"out": None},
        {"hashes": []},
    )
    for changes in lies:
        Path("record.json").write_text(json.dumps(record), "utf-8")
        rewrite(**changes)
        refused = again(run)
        assert refused.code == 2 and "this is no record of verify" in refused.error[0], changes
    for content in ("[]", "3", '"text"', "{}"):
        Path("record.json").write_text(content, "utf-8")
        assert again(run).code in (2, 3) and len(again(run).error) == 2, content
    for content in ("", "{", "\xff"):
        Path("record.json").write_text(content, "latin-1")
        assert again(run).code == 3 and len(again(run).error) == 2, content
    Path("record.json").unlink()
    assert again(run).code == 3

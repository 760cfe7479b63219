"""Answers: each is asked for once, whatever happens meanwhile, and the record says what they are worth."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import r1quant
from r1quant.jobs.generate.samples import Samples, collect
from r1quant.jobs.verify import asking, pair
from r1quant.jobs.verify.options import VerifyOptions
from r1quant.jobs.verify.run import verify as job
from r1quant.tinyr1 import problems as tinyr1
from tests.conftest import Ran, Run

REPOSITORY = Path(__file__).resolve().parents[3]
PROBLEMS = 8
GREEDY = ("--max-tokens", "150", "--temperature", "0")
ASKED = ("--windows", "0", "--aime", "mini", "--limit", str(PROBLEMS), *GREEDY, "--json")
WAITING_S = 120.0
COMMAND = "import sys; from r1quant.cli import cli, console; sys.exit(console.run(cli, sys.argv[1:]))"


@pytest.fixture(scope="module")
def four_bits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quantized") / "w4"
    r1quant.quantize("tiny-r1", out, bits=4, group_size=64, method="rtn")
    return out


@pytest.fixture(scope="module")
def asked(four_bits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A cache in which both models have answered, and the record of that."""
    cache = tmp_path_factory.mktemp("asked")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("R1QUANT_CACHE", str(cache))
        gates = ("aime.delta.low>-1", "aime.delta>-0.9")
        options = VerifyOptions(windows=0, aime="mini", limit=PROBLEMS, max_tokens=150, temperature=0.0, gate=gates)
        return cache, dict(job(four_bits, options=options).as_dict())


def no_runtime(*_: object, **__: object) -> None:
    raise AssertionError("a model was opened")


def told(ran: Ran) -> dict[str, Any]:
    assert ran.code == 0, ran.err
    return {name: ran.json[name] for name in ("aime", "health")}


def stored(cache: Path) -> dict[str, list[str]]:
    """The keys in each file of samples, by the file's name; half a line at the end is none."""
    return {
        path.name: [json.loads(line)["key"] for line in path.read_bytes().split(b"\n")[1:-1]]
        for path in sorted(cache.glob("samples-*.jsonl"))
    }


def test_what_the_record_says(asked: tuple[Path, dict[str, Any]]) -> None:
    record = asked[1]
    aime = record["aime"]
    assert (aime["set"], aime["problems"], aime["samples"]) == ("mini", PROBLEMS, 1)
    assert aime["sampling"] == {"temperature": 0, "top_p": 0.95, "max_tokens": 150, "seed": 0}
    right = {side: [row[side] for row in aime["table"]] for side in ("baseline", "quantized")}
    for side, marks in right.items():
        assert aime[side]["accuracy"] == pytest.approx(sum(marks) / PROBLEMS)
        low, high = aime[side]["ci95"]
        assert 0 <= low < aime[side]["accuracy"] < high <= 1
    assert aime["baseline"]["accuracy"] > 0.2, "tiny-r1 solves those that take few tokens"
    assert aime["delta"] == pytest.approx((sum(right["quantized"]) - sum(right["baseline"])) / PROBLEMS)
    low, high = aime["delta_ci95"]
    assert low < aime["delta"] < high
    assert 0 < aime["p_value"] <= 1 and 0 < aime["smallest_detectable"] <= 1
    rows = [json.loads(line) for line in Path(tinyr1.__file__).with_name("heldout.jsonl").read_text().splitlines()]
    assert [row["answer"] for row in aime["table"]] == [str(row["answer"]) for row in rows[:PROBLEMS]]
    assert len({row["key"] for row in aime["table"]}) == PROBLEMS
    for side in ("baseline", "quantized"):
        found = record["health"][side]
        shares = [found[name] for name in ("closed_think", "truncated", "unparsed", "loops", "language_mixing")]
        assert all(0 <= share <= 1 for share in shares) and 0 < found["length"]["mean"] <= found["length"]["max"] <= 150
    assert record["health"]["length_ratio"] > 0
    assert [verdict["passed"] for verdict in record["gates"]] == [True, True]
    assert {"kl", "perplexity", "text"}.isdisjoint(record)


def test_answers_come_from_the_store_and_gates_decide(
    run: Run, four_bits: Path, asked: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, record = asked
    monkeypatch.setenv("R1QUANT_CACHE", str(cache))
    monkeypatch.setattr(pair, "open_runtime", no_runtime)
    kept = run("verify", four_bits, *ASKED, "--gate", "aime.delta.low>-1", "--gate", "aime.delta>-0.9")
    assert told(kept) == {name: record[name] for name in ("aime", "health")}
    broken = run("verify", four_bits, *ASKED, "--gate", "aime.baseline.accuracy>1", "--gate", "aime.delta>-0.9")
    assert broken.code == 1 and [verdict["passed"] for verdict in broken.json["gates"]] == [False, True]
    shown = run("verify", four_bits, *ASKED[:-1], "--gate", "health.quantized.closed_think>2")
    assert shown.code == 1 and "FAILED" in shown.out
    assert f"{PROBLEMS} problems of mini" in " ".join(shown.out.split())
    assert "for no difference" in shown.err and "closes </think>" in shown.out
    fewer = run("verify", four_bits, *ASKED, "--limit", "5")
    assert told(fewer)["aime"]["table"] == record["aime"]["table"][:5]


def test_what_would_change_an_answer_asks_again(
    run: Run, four_bits: Path, asked: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("R1QUANT_CACHE", str(shutil.copytree(asked[0], tmp_path / "cache")))
    monkeypatch.setattr(pair, "open_runtime", no_runtime)
    assert run("verify", four_bits, *ASKED).code == 0
    for option, value in (
        ("--temperature", "0.5"), ("--top-p", "0.9"), ("--max-tokens", "151"), ("--seed", "1"), ("--dtype", "bfloat16"),
        ("--limit", "9"), ("--samples", "2"), ("--backend", "mock"), ("--baseline-backend", "mock"),
    ):  # fmt: skip
        ran = run("verify", four_bits, *ASKED, option, value)
        assert ran.code == 3 and "a model was opened" in ran.json["error"]["message"], option


def test_more_samples_ask_only_for_what_is_missing(
    run: Run, four_bits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drawn, not the likeliest: the first sample of a problem is the same in both runs, the second another."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("R1QUANT_CACHE", str(cache))
    drawn = ("--aime", "mini", "--limit", "3", "--max-tokens", "12", "--temperature", "3", "--top-p", "1")
    words = ("verify", four_bits, "--windows", "0", *drawn, "--json")
    asked_for: list[list[str]] = []

    def watched(runtime: Any, prompts: Any, sampling: Any, stop: Any, store: Samples, *rest: Any) -> Any:
        asked_for.append([prompt.key for prompt in prompts if prompt.key not in store.have])
        return collect(runtime, prompts, sampling, stop, store, *rest)

    monkeypatch.setattr(asking, "collect", watched)
    one = told(run(*words, "--samples", "1"))["aime"]
    before = {path.name: path.read_bytes() for path in cache.glob("samples-*")}
    assert [len(keys) for keys in asked_for] == [3, 3] and len(before) == 2
    two = told(run(*words, "--samples", "2"))["aime"]
    assert [len(keys) for keys in asked_for] == [3, 3, 3, 3]
    assert all(key.endswith("/0") for keys in asked_for[:2] for key in keys)
    assert all(key.endswith("/1") for keys in asked_for[2:] for key in keys)
    assert two["samples"] == 2 and one["samples"] == 1
    for path in cache.glob("samples-*"):
        assert path.read_bytes().startswith(before[path.name])
        samples = {line["key"]: line["text"] for line in map(json.loads, path.read_bytes().split(b"\n")[1:-1])}
        assert len(samples) == 6
        pairs = [(samples[key], samples[key[:-1] + "1"]) for key in samples if key.endswith("/0")]
        assert any(first != second for first, second in pairs), pairs


def test_a_killed_run_goes_on(
    run: Run,
    four_bits: Path,
    asked: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SIGKILL while the baseline answers; what the quantized model said is at hand."""
    cache, record = asked
    quantized = record["hashes"]["quantized"]
    (there,) = (path for path in cache.glob("samples-*") if quantized in path.read_text("utf-8"))
    own = tmp_path / "cache"
    own.mkdir()
    shutil.copy(there, own)
    monkeypatch.setenv("R1QUANT_CACHE", str(own))
    words = ("verify", str(four_bits), *ASKED)
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND, *words], cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as child:
        end = time.monotonic() + WAITING_S
        try:
            while min(map(len, (found := stored(own)).values())) < 3 or len(found) < 2:
                assert child.poll() is None, "it ended before it was killed"
                assert time.monotonic() < end
                time.sleep(0.01)
        finally:
            child.kill()
    assert child.returncode == -signal.SIGKILL
    before = stored(own)
    assert 3 <= min(map(len, before.values())) < PROBLEMS
    again = told(run(*words))
    after = stored(own)
    assert {name: set(keys) for name, keys in after.items()} == {n: set(keys) for n, keys in stored(cache).items()}
    assert all(len(set(keys)) == len(keys) == PROBLEMS for keys in after.values())
    assert all(after[name][: len(keys)] == keys for name, keys in before.items())
    assert again == {name: record[name] for name in ("aime", "health")}


def test_problems_in_a_file(run: Run, four_bits: Path, in_tmp: Path) -> None:
    rows = [{"problem": f"What is {n} + {n}?", "answer": 2 * n, "id": f"sum {n}"} for n in range(2, 5)]
    Path("sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    words = ("verify", four_bits, "--windows", "0", "--aime", "sums.jsonl", "--max-tokens", "8", "--json")
    aime = told(run(*words))["aime"]
    assert (aime["set"], aime["source"], aime["problems"]) == ("sums", "sums.jsonl", 3)
    assert [(row["key"], row["answer"]) for row in aime["table"]] == [(f"sum {n}", str(2 * n)) for n in range(2, 5)]
    rows[1]["problem"] = "What is 3 and 3?"
    Path("sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    changed = told(run(*words))["aime"]
    assert changed["sha256"] != aime["sha256"]
    Path("sums.jsonl").write_text('{"problem": "What is 1 + 1?"}\n', "utf-8")
    refused = run(*words[:-1])
    assert refused.code == 3 and "sums.jsonl:1 has no answer" in refused.error[0]


def test_json_and_function_calls(run: Run, four_bits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """tiny-r1 can do neither; what matters is that both are asked, and only once."""
    words = ("verify", four_bits, "--windows", "0", "--health", "--max-tokens", "8", "--json")
    first = run(*words, "--gate", "health.formats.quantized.json_valid>=0")
    assert first.code == 0, first.err
    formats = first.json["health"]["formats"]
    for side in ("baseline", "quantized"):
        assert set(formats[side]) == {"json_valid", "tool_call_valid"}
        assert all(0 <= share <= 1 for share in formats[side].values())
    assert "aime" not in first.json
    monkeypatch.setattr(pair, "open_runtime", no_runtime)
    again = run(*words)
    assert again.code == 0 and again.json["health"] == first.json["health"]
    shown = run(*words[:-1])
    assert "valid JSON" in shown.out and "valid function calls" in shown.out

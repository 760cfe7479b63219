"""What fit recommends: the sentence, its numbers against the rows, and what comes first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from r1quant.core.formatting import tokens_text
from r1quant.jobs.fit.run import TYPICAL
from tests.configs import R1_QWEN3_8B
from tests.conftest import Run


@pytest.fixture
def r1(tmp_path: Path) -> Path:
    """A folder that has the config.json of DeepSeek-R1-0528-Qwen3-8B and nothing else."""
    folder = tmp_path / "r1"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(R1_QWEN3_8B), "utf-8")
    return folder


def rows_of(found: dict[str, Any], gpu: str) -> dict[str, dict[str, Any]]:
    return {row["format"]: row for row in found["rows"] if row["gpu"] == gpu}


def test_what_an_8_gb_card_holds_of_the_8b_model(run: Run, r1: Path) -> None:
    words = ("fit", r1, "--gpu", "RTX 4060", "--context", "32768")
    found = run(*words, "--json").json
    plain, small = rows_of(found, "RTX 4060"), rows_of(run(*words, "--kv-bits", "8", "--json").json, "RTX 4060")
    assert not any(row["fits"] for row in plain.values() if row["bits"] >= 4)
    (advice,) = found["recommendation"]["cards"]
    assert advice["choice"] == {
        "format": "gguf-q4_k_m",
        "title": "Q4_K_M",
        "kv_bits": 8,
        "max_context": small["gguf-q4_k_m"]["max_context"],
    }
    assert not advice["holds"] and 26_000 < advice["choice"]["max_context"] < 28_000
    for alternative, label in zip(advice["alternatives"], ("gguf-q4_k_m", "gptq-w4-g128"), strict=True):
        assert (alternative["format"], alternative["kv_bits"]) == (label, 16)
        assert alternative["max_context"] == plain[label]["max_context"]
    needed = advice["needed"]
    bigger = rows_of(run("fit", r1, "--gpu", needed["gpu"], "--json").json, needed["gpu"])
    assert bigger["gguf-q4_k_m"]["fits"] and needed["memory_bytes"] < 12.1 * 2**30
    reached = [tokens_text(count) for count in (advice["choice"]["max_context"], *(
        plain[label]["max_context"] for label in ("gguf-q4_k_m", "gptq-w4-g128")
    ))]  # fmt: skip
    sentence = (
        f"on RTX 4060: Q4_K_M with an 8-bit cache, {reached[0]} tokens; "
        f"with a 16-bit cache Q4_K_M holds {reached[1]}, W4 GPTQ {reached[2]}; "
        f"to hold 32K tokens at 16 bits: {needed['memory_bytes'] / 2**30:g} GB, such as {needed['gpu']}"
    )
    assert advice["text"] == found["recommendation"]["text"] == sentence
    assert run(*words).out.splitlines()[0] == sentence


def test_the_most_precise_that_holds_the_load(run: Run, r1: Path) -> None:
    for gpu in ("RTX 3060 12GB", "RTX 4090", "A100 80GB", "L4"):
        found = run("fit", r1, "--gpu", gpu, "--json").json
        (advice,) = found["recommendation"]["cards"]
        rows, choice = rows_of(found, gpu), advice["choice"]
        assert advice["holds"] and advice["needed"] is None and advice["alternatives"] == []
        assert rows[choice["format"]]["fits"] and choice["max_context"] == rows[choice["format"]]["max_context"]
        assert not any(row["fits"] for row in rows.values() if row["bits"] > rows[choice["format"]]["bits"])
        assert advice["text"] == f"on {gpu}: {choice['title']}, {tokens_text(choice['max_context'])} tokens"


def test_rows_that_fit_come_first(run: Run, r1: Path) -> None:
    found = run("fit", r1, "--gpu", "RTX 3060 12GB", "--gpu", "RTX 4060", "--context", "8192", "--json").json
    for gpu in ("RTX 3060 12GB", "RTX 4060"):
        fits = [row["fits"] for row in found["rows"] if row["gpu"] == gpu]
        assert fits == sorted(fits, reverse=True) and len(set(fits)) == 2
    assert [advice["gpu"] for advice in found["recommendation"]["cards"]] == ["RTX 3060 12GB", "RTX 4060"]


def test_without_a_card_typical_ones_are_advised(run: Run, r1: Path) -> None:
    found = run("fit", r1, "--json").json["recommendation"]
    assert tuple(advice["gpu"] for advice in found["cards"]) == TYPICAL
    assert run("fit", r1).out.splitlines()[: len(TYPICAL)] == found["text"].splitlines()


@pytest.mark.parametrize(
    ("words", "format", "kv_bits"),
    [
        (("--format", "gptq"), "gptq-w4-g128", 8),
        (("--bits", "3"), "gguf-q3_k_m", 16),
        (("--format", "gptq-w4-g32"), "gptq-w4-g32", 8),
        (("--format", "onnx", "--context", "2048"), "onnx-fp16-w4-g128", 16),
    ],
)
def test_what_the_user_names_is_what_is_recommended(
    words: tuple[str, ...], format: str, kv_bits: int, run: Run, r1: Path
) -> None:
    base = () if "--context" in words else ("--context", "16384")
    (advice,) = run("fit", r1, "--gpu", "RTX 4060", *base, *words, "--json").json["recommendation"]["cards"]
    assert (advice["choice"]["format"], advice["choice"]["kv_bits"]) == (format, kv_bits)


def test_where_nothing_fits_it_says_what_does(run: Run, r1: Path) -> None:
    words = ("fit", r1, "--gpu", "RTX 4060", "--format", "fp16", "--json")
    (advice,) = run(*words).json["recommendation"]["cards"]
    assert advice["choice"] is None and not advice["holds"]
    assert advice["text"].startswith("on RTX 4060: nothing fits; to hold 32K tokens of fp16 at 16 bits: ")


def test_several_texts_and_cards(run: Run, r1: Path) -> None:
    words = ("fit", r1, "--gpu", "RTX 4090", "--gpus", "2", "--batch", "8", "--json")
    (advice,) = run(*words).json["recommendation"]["cards"]
    assert advice["text"].startswith("on 2 x RTX 4090: ") and "tokens for each text" in advice["text"]

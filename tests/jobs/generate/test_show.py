"""`r1quant calib show`: what a calibration text holds, counted with a model's own tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from r1quant.checkpoint.tokenizer import Tokenizer
from tests.conftest import Run


def test_documents_tokens_and_reasoning(run: Run, in_tmp: Path, tokenizer: Tokenizer) -> None:
    documents = ["Compute 1 + 2.<think>\n1+2=3\n</think>\n\n\\boxed{3}", "<think>\n1+1=", "Compute 4 + 5."]
    Path("mine.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    found = run("calib", "show", "mine.jsonl", "--json").json
    ids = [tokenizer.encode(text) for text in documents]
    opening, closing = (tokenizer.encode(tag)[0] for tag in ("<think>", "</think>"))
    thinking = ids[0].index(closing) - ids[0].index(opening) + len(ids[1]) - 1
    assert (found["documents"], found["tokens"], found["longest"]) == (3, sum(map(len, ids)), max(map(len, ids)))
    assert found["thinking_tokens"] == thinking and found["thinking_share"] == thinking / sum(map(len, ids))
    assert found["unclosed"] == 1 and found["header"] is None and found["source"] == "mine.jsonl"


def test_a_plain_text_is_counted_to_its_end(run: Run, in_tmp: Path, tokenizer: Tokenizer) -> None:
    text = "Compute 12 + 30. " * 5000
    Path("long.txt").write_text(text)
    found = run("calib", "show", "long.txt", "--json").json
    assert found["tokens"] == len(tokenizer.encode(text)) and found["documents"] == 1
    assert found["thinking_tokens"] == found["unclosed"] == 0


def test_the_bundled_text(run: Run) -> None:
    ran = run("calib", "show", "--json")
    assert ran.json["documents"] == 614 and 0.3 < ran.json["thinking_share"] < 0.9 and ran.json["unclosed"] == 0
    table = run("calib", "show")
    assert str(ran.json["tokens"]) in table.out and "inside <think>" in table.out


def test_a_model_that_does_not_reason(run: Run, copied: Path, text_file: Path) -> None:
    path = copied / "tokenizer.json"
    path.write_text(path.read_text("utf-8").replace("think>", "other>"), "utf-8")
    found = run("calib", "show", text_file, "--model", copied, "--json").json
    assert found["thinking_share"] is None and found["unclosed"] is None and found["tokens"] > 0


@pytest.mark.parametrize("text", ["absent.txt", "hub:owner/data", "empty.jsonl", "self", "."])
def test_what_cannot_be_counted(run: Run, text: str) -> None:
    Path("empty.jsonl").write_text("\n")
    assert run("calib", "show", text).code == 3

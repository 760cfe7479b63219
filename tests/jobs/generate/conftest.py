"""A cache of each test's own, and the embedded model's files of text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from r1quant.checkpoint.resolve import open_model
from r1quant.checkpoint.tokenizer import Tokenizer
from tests.conftest import Ran, Run

FEW = ("--limit", "4", "--max-tokens", "24", "--device", "cpu", "--dtype", "float32")


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("R1QUANT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.of(open_model("tiny-r1"))


@pytest.fixture
def generate(run: Run, own_cache: Path) -> Callable[..., Ran]:
    """`r1quant calib generate tiny-r1`, on few prompts and with few tokens."""
    return lambda *words: run("calib", "generate", "tiny-r1", "-o", "text.jsonl", *FEW, *words)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]

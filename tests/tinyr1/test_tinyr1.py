"""The embedded model: it reasons, it survives four bits, and it is what the commands use when nobody names one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import r1quant
from r1quant.checkpoint.resolve import embedded_folder, open_model
from r1quant.jobs.artifacts import open_artifact
from r1quant.tinyr1.problems import problems


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tinyr1") / "w4"
    r1quant.quantize(out=folder, bits=4)
    return folder


def test_it_solves_held_out_problems() -> None:
    """85 % of all 400 is the promise (reports/tiny-r1.json); these are the first 60, greedily, in bfloat16."""
    import train_tiny
    from tokenizers import Tokenizer

    from tests.independent import whole_model

    tokenizer = Tokenizer.from_file(str(embedded_folder() / "tokenizer.json"))
    model = whole_model(open_model("tiny-r1")).to(torch.bfloat16)
    assert train_tiny.accuracy(model, tokenizer, train_tiny.held_out()[:60]) >= 0.8


def test_the_held_out_file_is_what_the_generator_gives() -> None:
    import train_tiny

    lines = (embedded_folder().parent / "heldout.jsonl").read_text("utf-8").splitlines()
    stored = [json.loads(line) for line in lines]
    assert len(stored) == train_tiny.HELD_OUT
    for entry, problem in zip(stored, train_tiny.held_out(), strict=True):
        assert entry["problem"] == problem.question
        assert entry["answer"] == problem.answer
        assert 0 <= problem.answer <= 999


def test_training_problems_leave_the_held_out_ones_out() -> None:
    import train_tiny

    held = frozenset(p.question for p in train_tiny.held_out())
    stream = problems(train_tiny.HELD_OUT_SEED, held)
    assert all(next(stream).question not in held for _ in range(500))


def test_four_bits(out: Path) -> None:
    record = r1quant.verify(out, windows=8, seq_len=256).as_dict()
    assert record["kl"]["mean"] < 0.05
    assert record["top1"] > 0.97
    assert "chains" in record["text"]["source"]


def test_the_record_says_what_was_done(out: Path) -> None:
    record = json.loads((out / "r1quant.json").read_text("utf-8"))
    assert record["source"] == "tiny-r1"
    assert record["recipe"]["bits"] == 4
    assert len(record["linears"]) == 28
    assert all(0 < linear["relative_loss"] < 0.1 for linear in record["linears"])
    assert len(record["calibration"]["sha256"]) == 64
    assert set(record["weights"]) == {"model.safetensors"}


def test_config_is_carried_over_byte_for_byte(out: Path) -> None:
    source = (embedded_folder() / "config.json").read_text("utf-8")
    written = (out / "config.json").read_text("utf-8")
    assert written.startswith(source.rstrip().removesuffix("}").rstrip())
    stated = json.loads(written).pop("quantization_config")
    assert stated == json.loads((out / "quantize_config.json").read_text("utf-8"))


def test_the_quantized_head_and_embedding_stay_float(out: Path) -> None:
    before, after = open_model("tiny-r1"), open_artifact(out)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert before.read(name).equal(after.read(name))

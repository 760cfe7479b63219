"""Gates on a record: what they are, what they read, and what they refuse."""

from __future__ import annotations

import math

import pytest

from r1quant.errors import RecipeError
from r1quant.metrics.gates import judge, numbers, parse, refuse_unknown

RECORD = {"kl": {"mean": 0.02, "mean_ci95": [0.01, 0.03]}, "top1": 0.97, "dtype": "float32", "alone_ci95": None}


@pytest.mark.parametrize(
    ("text", "passed"),
    [
        ("kl.mean<0.05", True),
        (" kl.mean  <=  2e-2 ", True),
        ("kl.mean<0.02", False),
        ("top1>0.95", True),
        ("top1>=.97", True),
        ("kl.mean_ci95.high<0.025", False),
        ("kl.mean_ci95.low>0.005", True),
    ],
)
def test_judgement(text: str, passed: bool) -> None:
    (verdict,) = judge([parse(text)], RECORD)
    assert verdict["passed"] is passed and verdict["value"] == numbers(RECORD)[parse(text).key]


@pytest.mark.parametrize(
    "text", ["", "kl.mean", "kl.mean=0.1", "<0.1", "kl.mean<", "kl.mean<x", "kl.mean<1.2.3", "a<b<1"]
)
def test_what_is_no_gate(text: str) -> None:
    with pytest.raises(RecipeError, match="is not a gate"):
        parse(text)


def test_a_key_that_is_not_there() -> None:
    with pytest.raises(RecipeError, match=r"no kl\.meen") as refused:
        refuse_unknown([parse("kl.meen<1")], RECORD)
    assert "kl.mean" in refused.value.hint
    refuse_unknown([parse("kl.mean.low<1"), parse("kl.mean_ci95.low<1")], RECORD)
    (verdict,) = judge([parse("kl.meen<1")], RECORD)
    assert verdict["value"] is None and not verdict["passed"]


def test_an_interval_that_is_not_known_passes_nothing() -> None:
    record = {"mean_ci95": [None, None]}
    assert math.isnan(numbers(record)["mean_ci95.low"])
    for text in ("mean_ci95.low>0", "mean_ci95.low<0"):
        assert not judge([parse(text)], record)[0]["passed"]

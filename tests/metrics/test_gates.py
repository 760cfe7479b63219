"""Gates on a record: what they are, what they read, what they refuse, and what they take a wrong key for."""

from __future__ import annotations

import pytest

from r1quant.errors import RecipeError
from r1quant.metrics.gates import judge, nearest, parse, refuse_unknown
from r1quant.records.interval import Interval
from r1quant.records.text import Divergence, Perplexity, TextScores
from r1quant.records.verification import GateVerdict, Verification

KL = Divergence(mean=0.02, median=0.01, p99=0.2, max=0.4, mean_ci95=Interval(0.01, 0.03))
RECORD = Verification(scores=TextScores(9, Perplexity(2.0, 3.0, 1.5), 0.1, kl=KL, top1=0.97))
PATHS = Verification.number_paths()


@pytest.mark.parametrize(
    ("text", "passed"),
    [
        ("kl.mean<0.05", True),
        (" kl.mean  <=  2e-2 ", True),
        ("kl.mean<0.02", False),
        ("top1>0.95", True),
        ("top1>=.97", True),
        ("kl.mean.high<0.025", False),
        ("kl.mean_ci95.high<0.025", False),
        ("kl.mean_ci95.low>0.005", True),
    ],
)
def test_judgement(text: str, passed: bool) -> None:
    (verdict,) = judge([parse(text)], RECORD.numbers())
    assert verdict.passed is passed and verdict.value == RECORD.numbers()[parse(text).key]


@pytest.mark.parametrize(
    "text", ["", "kl.mean", "kl.mean=0.1", "<0.1", "kl.mean<", "kl.mean<x", "kl.mean<1.2.3", "a<b<1"]
)
def test_what_is_no_gate(text: str) -> None:
    with pytest.raises(RecipeError, match="is not a gate"):
        parse(text)


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("kl", "kl.mean"),
        ("mean", "kl.mean"),
        ("kl.meen", "kl.mean"),
        ("kl_mean", "kl.mean"),
        ("p99", "kl.p99"),
        ("perplexity", "perplexity.ratio"),
        ("perplexity.baseline_ci95", "perplexity.baseline_ci95.low"),
        ("aime", "aime.delta"),
        ("aime.quantized", "aime.quantized.accuracy"),
        ("accuracy", "aime.baseline.accuracy"),
        ("aime.detla", "aime.delta"),
        ("by_class.thinking", "by_class.thinking.kl.mean"),
        ("tasks.delta", "tasks.delta.*.*.mean"),
        ("truncated", "health.baseline.truncated"),
    ],
)
def test_a_wrong_key_is_taken_for_the_number_that_is_likely_meant(key: str, meant: str) -> None:
    assert nearest(key, PATHS) == meant
    with pytest.raises(RecipeError) as refused:
        refuse_unknown([parse(f"{key}<1")], PATHS)
    assert refused.value.message == f"there is no number {key} to set a gate on"
    assert refused.value.hint == f"did you mean {meant}?"


def test_a_key_that_is_like_no_other_is_refused_with_examples() -> None:
    with pytest.raises(RecipeError, match="there is no number zzz") as refused:
        refuse_unknown([parse("zzz<1")], PATHS)
    assert "kl.mean" in refused.value.hint and len(refused.value.hint) < 100


def test_every_path_can_have_a_gate() -> None:
    refuse_unknown([parse(f"{path.replace('*', 'any_name,filter')}<1") for path in PATHS], PATHS)


def test_what_was_not_measured_passes_nothing() -> None:
    for text in ("top1.low>0", "top1.low<0", "aime.delta>-1", "by_class.answer.kl.mean<9"):
        assert judge([parse(text)], RECORD.numbers()) == (GateVerdict(text, None, False),)

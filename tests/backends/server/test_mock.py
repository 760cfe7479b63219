"""The mock: its answers and distributions are what its description says."""

from __future__ import annotations

import re

import numpy as np
import pytest

from r1quant.backends import Completion, Prompt, Sampling
from r1quant.backends.mock import Mock, Truth
from r1quant.errors import RecipeError

COUNT = 800
ANSWERS = {f"p{i}": str(i % 1000) for i in range(COUNT)}
TOKENS = np.random.default_rng(3).integers(0, 512, 200)
BOXED = re.compile(r"\\boxed\{(\d+)\}")


def run(spec: str, cap: int = 10**6, seed: int = 0) -> list[Completion]:
    prompts = (Prompt(key, (), (), seed) for key in ANSWERS)
    return list(Mock(spec, ANSWERS).complete(prompts, Sampling(max_tokens=cap), frozenset()))


def right(found: Completion) -> bool:
    boxed = BOXED.findall(found.text)
    return boxed == [ANSWERS[found.key]]


def log_probabilities(spec: str, tokens: np.ndarray = TOKENS) -> np.ndarray:
    logits = Mock(spec, {}).logits(tokens).astype(np.float64)
    result: np.ndarray = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return result


def test_shares_are_those_of_the_description() -> None:
    found = run("mock:accuracy=0.6,truncated=0.1,loops=0.05")
    looped = [not f.finished and f.text.count("Wait, let me check that again.") > 50 for f in found]
    cut = [not f.finished and not loop for f, loop in zip(found, looped, strict=True)]
    wrong = [f.finished and not right(f) for f in found]
    shares = [np.mean(kind) for kind in ([right(f) for f in found], cut, looped, wrong)]
    assert np.abs(np.array(shares) - (0.6, 0.1, 0.05, 0.25)).max() < 4 * (0.25 / COUNT) ** 0.5
    assert all(f.text.startswith("<think>\n") and ("</think>" in f.text) == f.finished for f in found)
    assert all(f.count == len(f.text.split(" ")) for f in found)


def test_extremes_leave_nothing_to_luck() -> None:
    assert all(map(right, run("mock:1"))) and all(map(right, run("mock")))
    assert not any(map(right, run("mock:0")))
    assert not any(f.finished for f in run("mock:accuracy=0,truncated=1"))


def test_answers_are_decided_by_key_and_seeds() -> None:
    first = run("mock:0.5")
    assert run("mock:0.5") == first
    for other in (run("mock:0.5", seed=1), run("mock:accuracy=0.5,seed=1")):
        same = np.mean([right(a) == right(b) for a, b in zip(first, other, strict=True)])
        assert 0.45 < same < 0.55
    better = run("mock:0.7")
    assert all(right(b) for a, b in zip(first, better, strict=True) if right(a))


def test_what_is_longer_than_the_cap_is_cut() -> None:
    found = run("mock:accuracy=0.9,loops=0.1", cap=30)
    assert all(f.count == 30 and not f.finished for f in found)


def test_the_same_context_has_the_same_distribution() -> None:
    whole = Mock("mock", {}).logits(TOKENS)
    assert whole.shape == (200, 512) and whole.dtype == np.float32
    assert np.array_equal(whole[:50], Mock("mock:0.1", {}).logits(TOKENS[:50]))
    changed = TOKENS.copy()
    changed[20] += 1
    rows = (Mock("mock", {}).logits(changed) == whole).all(1)
    assert rows[:20].all() and not rows[20:].any()
    assert abs(whole.mean()) < 0.05 and abs(whole.std() - 2) < 0.05


@pytest.mark.parametrize("noise", [0.03, 0.1, 0.3])
def test_noise_costs_the_divergence_that_it_is_said_to(noise: float) -> None:
    p, q = log_probabilities("mock"), log_probabilities(f"mock:noise={noise}")
    kl = (np.exp(p) * (p - q)).sum(1).mean()
    assert kl == pytest.approx((noise**2 / 2 * (1 - np.exp(2 * p).sum(1))).mean(), rel=0.05)
    assert np.array_equal(q, log_probabilities(f"mock:noise={noise}"))
    assert not np.allclose(q, log_probabilities(f"mock:noise={noise},seed=1"))


@pytest.mark.parametrize(
    "spec",
    (
        "",
        "torch",
        "mock:x",
        "mock:1.5",
        "mock:-0.1",
        "mock:nan",
        "mock:accuracy=0.8,loops=0.3",
        "mock:speed=1",
        "mock:0.5,accuracy=0.5",
        "mock:noise=-1",
        "mock:noise=inf",
        "mock:seed=0.5",
    ),
)
def test_what_is_no_description_is_refused(spec: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Truth.of(spec)
    assert str(caught.value).count("\n") == 1


def test_a_prompt_without_an_answer_gets_none() -> None:
    (found,) = Mock("mock", ANSWERS).complete([Prompt("other", (), ())], Sampling(), frozenset())
    assert found.finished and "</think>" in found.text and not BOXED.search(found.text)


def test_blanks_in_a_description_do_not_matter() -> None:
    assert Truth.of("mock:0.5, noise=0.1") == Truth(accuracy=0.5, noise=0.1)

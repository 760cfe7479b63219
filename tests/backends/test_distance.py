"""Distances computed tile by tile are those of whole distributions in float64."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from r1quant.backends import distance as module
from r1quant.backends.distance import Given, Logits, Projected, distance, likelihood
from r1quant.errors import NumericError

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Whole:
    """What one model says, tiled and whole: float64 [n, vocabulary]."""

    tiled: Logits
    logits: Float

    @property
    def logp(self) -> Float:
        shifted = self.logits - self.logits.max(1, keepdims=True)
        return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))


@contextmanager
def tiles(rows: int, columns: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ROWS", rows)
        patch.setattr(module, "COLUMNS", columns)
        patch.setattr(module, "HEAD_ROWS", columns + 3)
        yield


def given_model(n: int, vocabulary: int, spread: float, offset: float, seed: int) -> Whole:
    logits = (np.random.default_rng(seed).normal(0, spread, (n, vocabulary)) + offset).astype(np.float32)
    return Whole(Given(torch.from_numpy(logits), CPU), logits.astype(np.float64))


def projected_model(
    n: int, vocabulary: int, spread: float, offset: float, seed: int, dtype: torch.dtype, width: int = 8
) -> Whole:
    """The offset of a row comes from one channel that all rows of the head read alike, as outlier channels do."""
    random = torch.Generator().manual_seed(seed)
    hidden, head = (torch.randn(rows, width, generator=random) for rows in (n, vocabulary))
    hidden, head = hidden * spread / width**0.5, head.clone()
    hidden[:, 0], head[:, 0] = offset, 1.0
    hidden, head = hidden.to(dtype), head.to(dtype)
    exact = hidden.double().numpy() @ head.double().numpy().T
    return Whole(Projected(hidden, head, CPU), exact)


@st.composite
def models(draw: st.DrawFn) -> tuple[Whole, Whole, npt.NDArray[np.int64]]:
    n, vocabulary = draw(st.integers(1, 23)), draw(st.integers(2, 97))
    made = []
    for _ in "pq":
        spread, offset = draw(st.sampled_from((0.01, 1.0, 8.0))), draw(st.sampled_from((-300.0, 0.0, 700.0)))
        seed, dtype = draw(st.integers(0, 1 << 30)), draw(st.sampled_from((None, *DTYPES)))
        if dtype is None:
            made.append(given_model(n, vocabulary, spread, offset, seed))
        else:
            made.append(projected_model(n, vocabulary, spread, offset, seed, dtype))
    coming = np.array(draw(st.lists(st.integers(0, vocabulary - 1), min_size=n, max_size=n)), np.int64)
    return made[0], made[1], coming


def tolerance(*sides: Whole) -> float:
    """What float32 logits leave unknown: some roundings of the largest."""
    return 1e-6 + 8 * float(np.finfo(np.float32).eps) * max(float(np.abs(side.logits).max()) for side in sides)


@settings(max_examples=150, deadline=None)
@given(models(), st.integers(1, 9), st.integers(1, 41))
def test_tiles_give_what_whole_distributions_give(
    drawn: tuple[Whole, Whole, npt.NDArray[np.int64]], rows: int, columns: int
) -> None:
    p, q, coming = drawn
    with tiles(rows, columns):
        found, alone = distance(p.tiled, q.tiled, coming), likelihood(p.tiled, coming)
    near = tolerance(p, q)
    places = np.arange(len(coming)), coming
    np.testing.assert_allclose(found.nll_baseline, -p.logp[places], rtol=1e-6, atol=near)
    np.testing.assert_allclose(found.nll_quantized, -q.logp[places], rtol=1e-6, atol=near)
    np.testing.assert_array_equal(alone, found.nll_baseline)
    assert found.kl is not None and found.same_top1 is not None and found.kl_variance is None
    kl = (np.exp(p.logp) * (p.logp - q.logp)).sum(1)
    np.testing.assert_allclose(found.kl, kl, rtol=1e-5, atol=2 * near)
    assert (found.kl >= 0).all()
    clear = np.ones(len(coming), np.bool_)
    for side in (p, q):
        if isinstance(side.tiled, Projected):  # else the logits are the very same numbers, ties and all
            first, second = np.sort(side.logits, 1)[:, ::-1][:, :2].T
            clear &= first - second > near
    same = p.logits.argmax(1) == q.logits.argmax(1)
    np.testing.assert_array_equal(found.same_top1[clear], same[clear])


def test_the_tiles_that_are_used_are_crossed_too() -> None:
    """One vocabulary and one text that neither tile divides."""
    n, vocabulary = module.ROWS + 37, 2 * module.COLUMNS + 5
    p = projected_model(n, vocabulary, 4.0, 50.0, 1, torch.bfloat16)
    q = projected_model(n, vocabulary, 4.0, -20.0, 2, torch.float32)
    coming = np.random.default_rng(3).integers(0, vocabulary, n)
    found = distance(p.tiled, q.tiled, coming)
    assert found.kl is not None
    np.testing.assert_allclose(found.kl, (np.exp(p.logp) * (p.logp - q.logp)).sum(1), rtol=1e-4)
    np.testing.assert_allclose(found.nll_quantized, -q.logp[np.arange(n), coming], rtol=1e-5)


@pytest.mark.parametrize("offset", [0.0, 700.0])
def test_a_model_has_no_distance_from_itself(offset: float) -> None:
    coming = np.zeros(19, np.int64)
    for p in (
        given_model(19, 101, 3.0, offset, 5),
        *(projected_model(19, 101, 3.0, offset, 5, dtype) for dtype in DTYPES),
    ):
        with tiles(7, 10):
            found = distance(p.tiled, p.tiled, coming)
        assert found.kl is not None and found.kl.max() < 1e-9 and found.same_top1 is not None and found.same_top1.all()
        np.testing.assert_array_equal(found.nll_baseline, found.nll_quantized)


def test_some_of_the_states_and_all_logits_of_a_head() -> None:
    p = projected_model(20, 33, 2.0, 5.0, 0, torch.bfloat16)
    assert isinstance(p.tiled, Projected)
    with tiles(6, 10):
        np.testing.assert_allclose(torch.cat(list(p.tiled.pieces())).numpy(), p.logits, rtol=1e-5)
        part = p.tiled.part(slice(4, 9))
        assert part.shape == (5, 33)
        np.testing.assert_allclose(torch.cat(list(part.pieces())).numpy(), p.logits[4:9], rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["baseline", "quantized model"])
@pytest.mark.parametrize("column", [0, 12, 30])
def test_what_is_no_number_is_refused_wherever_it_is(bad: float, side: str, column: int) -> None:
    """In the first tile, in the middle and in the last, where no token that came is."""
    good, broken = (given_model(6, 31, 1.0, 0.0, 7).logits.astype(np.float32) for _ in "pq")
    broken[4, column] = bad
    one, other = Given(torch.from_numpy(broken), CPU), Given(torch.from_numpy(good), CPU)
    pair = (one, other) if side == "baseline" else (other, one)
    with tiles(4, 10), pytest.raises(NumericError, match=f"{side} gives NaN or Inf"):
        distance(*pair, np.full(6, 20))
    if side == "baseline" and bad != -np.inf:
        with tiles(4, 10), pytest.raises(NumericError, match="baseline gives NaN or Inf"):
            likelihood(one, np.full(6, 20))

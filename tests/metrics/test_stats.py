"""Intervals are honest: they cover the truth as often as they say."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from r1quant.metrics.stats import interval
from r1quant.records.interval import Interval

Draw = Callable[[np.random.Generator, int], npt.NDArray[np.float64]]
TRUTHS: dict[str, tuple[Draw, float]] = {
    "normal": (lambda g, n: g.normal(3.0, 1.0, n), 3.0),
    "gamma": (lambda g, n: g.gamma(4.0, 0.01, n), 0.04),  # as means of KL divergence over windows are spread
    "share": (lambda g, n: g.binomial(511, 0.9, n) / 511, 0.9),
}


def known(bounds: Interval | None) -> Interval:
    assert bounds is not None
    return bounds


@pytest.mark.parametrize("name", TRUTHS)
@pytest.mark.parametrize("blocks", [24, 64])
def test_intervals_cover_the_truth(name: str, blocks: int) -> None:
    draw, truth = TRUTHS[name]
    generator = np.random.default_rng(7)
    runs = 600
    covered = 0
    for run in range(runs):
        low, high = known(interval(draw(generator, blocks)[:, None], seed=run))
        covered += low <= truth <= high
    assert 0.93 <= covered / runs <= 0.97


def test_the_interval_of_a_ratio() -> None:
    """Perplexity ratios: what the two models share cancels, so the interval is far narrower than either's own."""
    generator = np.random.default_rng(1)
    covered, widths, runs = 0, [], 300
    for run in range(runs):
        text = generator.normal(3.0, 0.5, 24)
        both = np.stack([text, text + generator.normal(0.02, 0.01, 24)], axis=1)
        low, high = known(interval(both, lambda means: np.exp(means[..., 1] - means[..., 0]), seed=run))
        covered += low <= np.exp(0.02) <= high
        widths.append(high - low)
    assert 0.92 <= covered / runs <= 0.98
    assert np.median(widths) < 0.02


def test_few_blocks() -> None:
    assert interval(np.ones((1, 1))) is None
    assert interval(np.full((5, 1), 2.0)) == Interval(2.0, 2.0)
    low, high = known(interval(np.array([[1.0], [2.0]])))
    assert low <= 1.5 <= high


def test_the_same_blocks_give_the_same_interval() -> None:
    blocks = np.random.default_rng(0).gamma(2.0, 1.0, (24, 1))
    assert interval(blocks) == interval(blocks) != interval(blocks, seed=1)


def test_few_blocks_have_wide_intervals_but_not_absurd_ones() -> None:
    random = np.random.default_rng(3)
    for _ in range(60):
        blocks = random.normal(3, 1, (3, 1))
        low, high = known(interval(blocks))
        assert -1e4 < low <= blocks.mean() <= high < 1e4

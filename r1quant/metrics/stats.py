"""How sure a mean is: intervals from resampling whole windows of text. Pure on arrays."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from r1quant.records.interval import Interval

RESAMPLES, FEWEST = 4000, 500
NUMBERS = 10**7  # block numbers drawn in all: if there are many blocks, fewer resamples serve as well
LEVEL = 0.95
SPREAD = 1e-6  # of the estimate's own standard error: the least that a resample's is taken for

Values = npt.NDArray[np.float64]


def interval(
    blocks: Values, statistic: Callable[[Values], Values] = lambda means: means[..., 0], seed: int = 0
) -> Interval | None:
    """The 95 % interval of a statistic of means, from a block bootstrap: blocks are drawn anew with replacement.

    blocks     [n, k]: k means of each of n equal blocks (tokens of one window depend on each other, windows do not)
    statistic  from means [..., k] to [...]; the first mean itself if it is left out

    The bounds are the bootstrap's t quantiles if the spread is known (n > 1): with few blocks, plain percentiles
    are too narrow. None for a single block. Efron and Tibshirani, An Introduction to the Bootstrap, chapter 12.
    """
    n = len(blocks)
    if n < 2:
        return None
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, n, (max(FEWEST, min(RESAMPLES, NUMBERS // n)), n))
    estimate = float(statistic(blocks.mean(0)))
    samples = blocks[drawn]  # [resamples, n, k]
    estimates = statistic(samples.mean(1))
    error, errors = _jackknife(blocks, statistic), _spread(samples, statistic)
    safe = errors > SPREAD * error  # resamples of one block alone have a spread of rounding size
    if error == 0 or not safe.any():
        return Interval(estimate, estimate)
    t = (estimates[safe] - estimate) / errors[safe]
    low, high = np.quantile(t, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(estimate - float(high) * error, estimate - float(low) * error)


def _jackknife(blocks: Values, statistic: Callable[[Values], Values]) -> float:
    """The standard error, from leaving out one block at a time."""
    n = len(blocks)
    left = statistic((blocks.sum(0) - blocks) / (n - 1))
    return float(np.sqrt((n - 1) / n * np.square(left - left.mean()).sum()))


def _spread(samples: Values, statistic: Callable[[Values], Values]) -> Values:
    """The jackknife's standard error of every resample [resamples, n, k] -> [resamples]."""
    n = samples.shape[1]
    left = statistic((samples.sum(1, keepdims=True) - samples) / (n - 1))
    spread: Values = np.sqrt((n - 1) / n * np.square(left - left.mean(1, keepdims=True)).sum(1))
    return spread

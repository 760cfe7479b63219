"""Two models on the same problems: which each solved, and how long their answers were. Pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence

from r1quant.reporting.summary import LengthHistogram, PairedProblems

BINS = 12


def mcnemar(lost: int, gained: int) -> float:
    """The exact test: of the problems that only one model solved, either is as likely to be that one.

    McNemar, Psychometrika 12 (1947); two-sided, twice the smaller tail of the binomial distribution.
    """
    n, fewer = lost + gained, min(lost, gained)
    tail = sum(math.comb(n, k) for k in range(fewer + 1))
    return float(min(1, 2 * tail / 2**n))  # of integers, so that no number of problems is too large


def pair(solved: Sequence[tuple[bool, bool]]) -> PairedProblems:
    """solved: of each problem, whether the baseline and whether the quantized model solved it."""
    both, lost, gained, neither = (
        solved.count(kind) for kind in ((True, True), (True, False), (False, True), (False, False))
    )
    return PairedProblems(both, lost, gained, neither, mcnemar(lost, gained))


def histogram(baseline: Sequence[float], quantized: Sequence[float]) -> LengthHistogram:
    """The lengths of answers, at least one of each model, in `BINS` equal bins from 0 to the longest."""
    longest = max(*baseline, *quantized)
    width = max(1, math.ceil((longest + 1) / BINS))

    def counts(values: Sequence[float]) -> tuple[int, ...]:
        places = [min(BINS - 1, int(value // width)) for value in values]
        return tuple(places.count(i) for i in range(BINS))

    return LengthHistogram(tuple(width * i for i in range(BINS + 1)), counts(baseline), counts(quantized))

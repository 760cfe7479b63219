"""How often answers are right, how sure that is, and what two models differ by on the same problems. Pure on arrays.

Problems are the units: samples of one problem depend on each other, and another exam would have other problems.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from r1quant.metrics.stats import LEVEL, interval
from r1quant.records.answers import AccuracyDifference, ModelAccuracy
from r1quant.records.interval import Interval

POWER = 0.8
# The fewest problems that a two-sided sign-flip test can tell from nothing are six (2 * 0.5**6 = 0.031); a Poisson
# count reaches six in 80 % of the runs if this many are expected.
CHANGED = 7.906

Right = npt.NDArray[np.bool_]


def summary(right: Right, answers: Sequence[Sequence[str | None]], k: int | None = None) -> ModelAccuracy:
    """One model on one set of problems.

    right    bool [problems, samples]
    answers  the same shape: the answers as strings, None if there was none
    k        of pass@k; all samples if it is None
    """
    problems, samples = right.shape
    return ModelAccuracy(
        accuracy=float(right.mean()),
        majority=majority(right, answers),
        any_right=pass_at(right, k or samples),
        problems=problems,
        samples=samples,
        ci95=accuracy_interval(right),
    )


def difference(baseline: Right, quantized: Right) -> AccuracyDifference:
    """Two models on the same problems in the same order, bool [problems, samples]; the samples may differ in number."""
    return AccuracyDifference(
        delta=float(quantized.mean() - baseline.mean()),
        p_value=p_value(baseline, quantized),
        delta_ci95=delta_interval(baseline, quantized),
        smallest_detectable=smallest_detectable(baseline, quantized),
    )


def accuracy_interval(right: Right) -> Interval | None:
    """The 95 % interval of the accuracy on problems of this kind; None for a single problem.

    Wilson's interval, for as many independent draws as the spread between problems says the samples are worth: at
    least one a problem, at most all of them. Right or wrong is too coarse for the bootstrap's t: 30 problems of which
    all, or all but one, are right leave it no spread. Wilson, J. Am. Stat. Assoc. 22 (1927); the effective number of
    draws as in Korn and Graubard, Survey Methodology 24 (1998), with Student's t for the normal quantile.
    """
    problems, samples = right.shape
    if problems < 2:
        return None
    shares = right.mean(1)
    mean, spread = float(shares.mean()), float(shares.var(ddof=1))
    worth = problems * samples if 0 < mean < 1 else problems
    if spread:
        worth = min(worth, max(problems, problems * mean * (1 - mean) / spread))
    square = _student((1 + LEVEL) / 2, problems - 1) ** 2 / worth
    centre = (mean + square / 2) / (1 + square)
    half = math.sqrt(square * (mean * (1 - mean) + square / 4)) / (1 + square)
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def majority(right: Right, answers: Sequence[Sequence[str | None]]) -> float:
    """maj@k: the share of problems whose most frequent answer is right.

    Samples without an answer do not vote. Right answers are one answer, however they are written. If answers tie,
    the problem counts with the probability that a winner drawn from them is right.
    """
    won = []
    for judged, given in zip(right, answers, strict=True):
        votes = Counter((bool(ok), None if ok else answer) for ok, answer in zip(judged, given, strict=True))
        del votes[False, None]
        most = max(votes.values(), default=0)
        winners = [ok for (ok, _), count in votes.items() if count == most]
        won.append(sum(winners) / len(winners) if winners else 0.0)
    return float(np.mean(won))


def pass_at(right: Right, k: int) -> float:
    """pass@k: the probability that one of k samples of a problem is right, k <= samples.

    The estimator without bias from more than k samples: Chen et al., Evaluating Large Language Models Trained on Code
    (2021), 1 - C(n - c, k) / C(n, k) for c right ones of n.
    """
    samples = right.shape[1]
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} of {samples} samples")
    return float(np.mean([1 - math.comb(samples - int(c), k) / math.comb(samples, k) for c in right.sum(1)]))


def delta_interval(baseline: Right, quantized: Right) -> Interval | None:
    """The 95 % interval of the difference on problems of this kind; None for a single problem.

    The bootstrap's t over problems (`stats.interval`) with two problems added: one that the quantized model does
    better by one sample, one that it does worse by one. Without them, models that differ on no problem would have an
    interval without width, and those that differ on one or two a far too narrow one. So Bonett and Price do for
    shares of pairs, J. Educ. Behav. Stat. 37 (2012). Errs on the wide side if fewer than about six problems differ.
    """
    changes = quantized.mean(1) - baseline.mean(1)
    if len(changes) < 2:
        return None
    step = 1 / min(baseline.shape[1], quantized.shape[1])
    bounds = interval(np.concatenate([changes, [step, -step]])[:, None])
    return None if bounds is None else bounds.clamped(-1.0, 1.0)


def p_value(baseline: Right, quantized: Right) -> float:
    """The sign-flip permutation test over problems, two-sided and exact: all 2**problems flips, by convolution."""
    counts = quantized.sum(1) * baseline.shape[1] - baseline.sum(1) * quantized.shape[1]
    changes = counts[counts != 0]
    if not len(changes):
        return 1.0
    changes = changes // np.gcd.reduce(changes)
    reach = int(np.abs(changes).sum())
    chance = np.zeros(2 * reach + 1)  # of each sum from -reach to reach
    chance[reach] = 1.0
    for size in np.abs(changes):
        chance = (np.roll(chance, size) + np.roll(chance, -size)) / 2
    extreme = np.abs(np.arange(-reach, reach + 1)) >= abs(int(changes.sum()))
    return min(1.0, float(chance[extreme].sum()))


def smallest_detectable(baseline: Right, quantized: Right) -> float | None:
    """The drop that a comparison like this one would have found at 5 %, two-sided, in 80 % of the runs; None for one
    problem.

    The d at which d = (t_0.975 + t_0.8) * sqrt((s**2 + d * (1 - d) / samples) / problems): s is the standard deviation
    of the differences over problems, the other term what a drop of d itself adds to it; t has problems - 1 degrees of
    freedom. But no less than a drop that changes `CHANGED` problems, 1 - (1 - CHANGED / problems)**(1 / samples), which
    decides if the two models differ on few or none. A drop that falls on few problems alone is harder to find.
    """
    problems, samples = len(baseline), min(baseline.shape[1], quantized.shape[1])
    if problems < 2:
        return None
    spread = float(np.std(quantized.mean(1) - baseline.mean(1), ddof=1))
    square = (_student((1 + LEVEL) / 2, problems - 1) + _student(POWER, problems - 1)) ** 2
    own = square / samples
    drop = (own + math.sqrt(own**2 + 4 * (problems + own) * square * spread**2)) / (2 * (problems + own))
    fewest = 1 - (1 - min(1.0, CHANGED / problems)) ** (1 / samples)
    return float(min(1.0, max(fewest, drop)))


def _student(probability: float, freedom: int) -> float:
    """The quantile of Student's t, by its expansion about the normal one: Abramowitz and Stegun, 26.7.5."""
    z = NormalDist().inv_cdf(probability)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return math.fsum(term / freedom**i for i, term in enumerate(terms))

"""Perplexity and Kullback-Leibler divergence from per-token scores, with intervals. Pure on arrays, without models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from r1quant.metrics.stats import interval
from r1quant.records.interval import Interval
from r1quant.records.text import (
    POSITIONS,
    ClassDivergence,
    ClassPerplexity,
    ClassScores,
    Divergence,
    Perplexity,
    PositionDivergence,
    TextScores,
)


@dataclass(frozen=True, eq=False)
class TokenScores:
    """Two models on the same text, one entry per predicted token, window after window.

    nll_baseline, nll_quantized   float64 [n]: negative log-probability of the token that came, in nats
    kl                            float64 [n]: KL(baseline || quantized) of the next-token distributions, in nats
    same_top1                     bool [n]: whether both put the same token first
    kl_variance                   float64 [n]: of the estimate of kl; None if kl is exact

    kl and same_top1 are None if a server gives no distributions.
    """

    nll_baseline: npt.NDArray[np.float64]
    nll_quantized: npt.NDArray[np.float64]
    kl: npt.NDArray[np.float64] | None
    same_top1: npt.NDArray[np.bool_] | None
    kl_variance: npt.NDArray[np.float64] | None = None


def perplexity(nll: npt.NDArray[np.float64]) -> float:
    """exp of the mean negative log-likelihood."""
    return float(np.exp(nll.mean()))


def summary(
    scores: TokenScores, windows: int, classes: Mapping[str, npt.NDArray[np.bool_]] | None = None
) -> TextScores:
    """What the scores of `windows` equal windows of text say.

    classes  bool [n] each: which tokens are of a class that is reported apart; a class without tokens is left out

    Quantiles interpolate linearly between order statistics. Intervals come from resampling windows.
    """
    delta = np.exp(-scores.nll_quantized) - np.exp(-scores.nll_baseline)
    measured = TextScores(
        tokens=len(scores.nll_baseline),
        perplexity=_perplexity(scores, windows),
        delta_p_rms=float(np.sqrt(np.square(delta).mean())),
        by_class={name: _of_class(scores, chosen) for name, chosen in (classes or {}).items() if chosen.any()},
    )
    if scores.kl is None or scores.same_top1 is None:
        return measured
    same = scores.same_top1.astype(np.float64)
    return replace(
        measured,
        kl=_divergence(scores.kl, scores.kl_variance, windows),
        top1=float(same.mean()),
        top1_ci95=interval(_blocks(windows, same)),
    )


def _perplexity(scores: TokenScores, windows: int) -> Perplexity:
    blocks = _blocks(windows, scores.nll_baseline, scores.nll_quantized)
    baseline, quantized = perplexity(scores.nll_baseline), perplexity(scores.nll_quantized)
    return Perplexity(
        baseline=baseline,
        quantized=quantized,
        ratio=quantized / baseline,
        baseline_ci95=_positive(interval(blocks[:, [0]], lambda means: np.exp(means[..., 0]))),
        quantized_ci95=_positive(interval(blocks[:, [1]], lambda means: np.exp(means[..., 0]))),
        ratio_ci95=_positive(interval(blocks, lambda means: np.exp(means[..., 1] - means[..., 0]))),
    )


def _divergence(values: npt.NDArray[np.float64], variance: npt.NDArray[np.float64] | None, windows: int) -> Divergence:
    kl = values.reshape(windows, -1)
    parts = np.array_split(np.arange(kl.shape[1]), min(POSITIONS, kl.shape[1]))
    return Divergence(
        mean=max(0.0, float(values.mean())),  # rounding may leave a little less than nothing
        median=float(np.median(values)),
        p99=float(np.quantile(values, 0.99)),
        max=float(values.max()),
        mean_ci95=_positive(interval(_blocks(windows, values))),
        sampling_error=0.0 if variance is None else float(np.sqrt(variance.sum()) / len(values)),
        by_position=tuple(
            PositionDivergence(int(part[0]) + 1, int(part[-1]) + 1, float(kl[:, part].mean())) for part in parts
        ),
    )


def _of_class(scores: TokenScores, chosen: npt.NDArray[np.bool_]) -> ClassScores:
    return ClassScores(
        tokens=int(chosen.sum()),
        perplexity=ClassPerplexity(perplexity(scores.nll_baseline[chosen]), perplexity(scores.nll_quantized[chosen])),
        kl=None if scores.kl is None else ClassDivergence(float(scores.kl[chosen].mean())),
        top1=None if scores.same_top1 is None else float(scores.same_top1[chosen].mean()),
    )


def _blocks(windows: int, *columns: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The mean of each column in each window: [windows, columns]."""
    return np.stack([column.reshape(windows, -1).mean(1) for column in columns], axis=1)


def _positive(bounds: Interval | None) -> Interval | None:
    """Without what lies below zero."""
    return None if bounds is None else bounds.clamped(0.0)

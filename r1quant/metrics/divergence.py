"""Perplexity and Kullback-Leibler divergence from per-token scores, with intervals. Pure on arrays, without models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from r1quant.metrics.stats import interval

BUCKETS = 4  # of positions in a window


@dataclass(frozen=True, eq=False)
class TokenScores:
    """Two models on the same text, one entry per predicted token, window after window.

    nll_baseline, nll_quantized   float64 [n]: negative log-probability of the token that came, in nats
    kl                            float64 [n]: KL(baseline || quantized) of the next-token distributions, in nats
    same_top1                     bool [n]: whether both put the same token first
    """

    nll_baseline: npt.NDArray[np.float64]
    nll_quantized: npt.NDArray[np.float64]
    kl: npt.NDArray[np.float64]
    same_top1: npt.NDArray[np.bool_]


def perplexity(nll: npt.NDArray[np.float64]) -> float:
    """exp of the mean negative log-likelihood."""
    return float(np.exp(nll.mean()))


def summary(scores: TokenScores, windows: int) -> dict[str, Any]:
    """What `verify` reports of scores that come from `windows` equal windows of text.

    Quantiles interpolate linearly between order statistics. Each `ci95` is a 95 % interval from resampling windows;
    null where there is only one. delta_p is the change of the probability of the token that came.
    """
    baseline, quantized = perplexity(scores.nll_baseline), perplexity(scores.nll_quantized)
    delta = np.exp(-scores.nll_quantized) - np.exp(-scores.nll_baseline)
    columns = (scores.nll_baseline, scores.nll_quantized, scores.kl, scores.same_top1.astype(np.float64))
    blocks = np.stack([column.reshape(windows, -1).mean(1) for column in columns], axis=1)
    kl = scores.kl.reshape(windows, -1)
    parts = np.array_split(np.arange(kl.shape[1]), min(BUCKETS, kl.shape[1]))
    return {
        "tokens": len(scores.kl),
        "perplexity": {
            "baseline": baseline,
            "baseline_ci95": _bounds(interval(blocks[:, [0]], lambda means: np.exp(means[..., 0]))),
            "quantized": quantized,
            "quantized_ci95": _bounds(interval(blocks[:, [1]], lambda means: np.exp(means[..., 0]))),
            "ratio": quantized / baseline,
            "ratio_ci95": _bounds(interval(blocks[:, :2], lambda means: np.exp(means[..., 1] - means[..., 0]))),
        },
        "kl": {
            "mean": float(scores.kl.mean()),
            "mean_ci95": _bounds(interval(blocks[:, [2]])),
            "median": float(np.median(scores.kl)),
            "p99": float(np.quantile(scores.kl, 0.99)),
            "max": float(scores.kl.max()),
            "by_position": [
                {"from": int(part[0]) + 1, "to": int(part[-1]) + 1, "mean": float(kl[:, part].mean())} for part in parts
            ],
        },
        "delta_p_rms": float(np.sqrt(np.square(delta).mean())),
        "top1": float(scores.same_top1.mean()),
        "top1_ci95": _bounds(interval(blocks[:, [3]])),
    }


def _bounds(found: tuple[float, float]) -> list[float] | None:
    return None if np.isnan(found[0]) else [float(bound) for bound in found]

"""Perplexity and Kullback-Leibler divergence from per-token scores. Pure on arrays; it does not know models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class TokenScores:
    """Two models on the same text, one entry per predicted token.

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


def summary(scores: TokenScores) -> dict[str, Any]:
    """What `verify` reports. Quantiles interpolate linearly between order statistics."""
    baseline, quantized = perplexity(scores.nll_baseline), perplexity(scores.nll_quantized)
    return {
        "tokens": len(scores.kl),
        "perplexity": {"baseline": baseline, "quantized": quantized, "ratio": quantized / baseline},
        "kl": {
            "mean": float(scores.kl.mean()),
            "median": float(np.median(scores.kl)),
            "p99": float(np.quantile(scores.kl, 0.99)),
            "max": float(scores.kl.max()),
        },
        "top1": float(scores.same_top1.mean()),
    }

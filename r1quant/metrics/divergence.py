"""Perplexity and Kullback-Leibler divergence from per-token scores, with intervals. Pure on arrays, without models."""

from __future__ import annotations

from collections.abc import Mapping
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
    kl_variance                   float64 [n]: of the estimate of kl; None where kl is exact

    kl and same_top1 are None where a server gives no distributions.
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
) -> dict[str, Any]:
    """What `verify` reports of scores that come from `windows` equal windows of text.

    classes: bool [n] each: kinds of tokens that are reported apart. Quantiles interpolate linearly between order
    statistics. Each `ci95` is a 95 % interval from resampling windows; null where there is only one. delta_p is the
    change of the probability of the token that came. sampling_error: the standard error of the mean that comes from
    estimating each divergence, 0 where they are exact.
    """
    delta = np.exp(-scores.nll_quantized) - np.exp(-scores.nll_baseline)
    found: dict[str, Any] = {
        "tokens": len(scores.nll_baseline),
        "perplexity": _perplexities(scores, windows),
        "kl": None,
        "delta_p_rms": float(np.sqrt(np.square(delta).mean())),
        "top1": None,
        "by_class": {name: _of_class(scores, chosen) for name, chosen in (classes or {}).items() if chosen.any()},
    }
    if scores.kl is not None and scores.same_top1 is not None:
        found["kl"] = _divergences(scores.kl, scores.kl_variance, windows)
        same = scores.same_top1.astype(np.float64)
        found |= {"top1": float(same.mean()), "top1_ci95": _bounds(interval(_blocks(windows, same)))}
    return found


def _perplexities(scores: TokenScores, windows: int) -> dict[str, Any]:
    blocks = _blocks(windows, scores.nll_baseline, scores.nll_quantized)
    baseline, quantized = perplexity(scores.nll_baseline), perplexity(scores.nll_quantized)
    return {
        "baseline": baseline,
        "baseline_ci95": _bounds(interval(blocks[:, [0]], lambda means: np.exp(means[..., 0])), least=0.0),
        "quantized": quantized,
        "quantized_ci95": _bounds(interval(blocks[:, [1]], lambda means: np.exp(means[..., 0])), least=0.0),
        "ratio": quantized / baseline,
        "ratio_ci95": _bounds(interval(blocks, lambda means: np.exp(means[..., 1] - means[..., 0])), least=0.0),
    }


def _divergences(
    values: npt.NDArray[np.float64], variance: npt.NDArray[np.float64] | None, windows: int
) -> dict[str, Any]:
    kl = values.reshape(windows, -1)
    parts = np.array_split(np.arange(kl.shape[1]), min(BUCKETS, kl.shape[1]))
    return {
        "mean": max(0.0, float(values.mean())),  # rounding may leave a little less than nothing
        "mean_ci95": _bounds(interval(_blocks(windows, values)), least=0.0),
        "sampling_error": 0.0 if variance is None else float(np.sqrt(variance.sum()) / len(values)),
        "median": float(np.median(values)),
        "p99": float(np.quantile(values, 0.99)),
        "max": float(values.max()),
        "by_position": [
            {"from": int(part[0]) + 1, "to": int(part[-1]) + 1, "mean": float(kl[:, part].mean())} for part in parts
        ],
    }


def _of_class(scores: TokenScores, chosen: npt.NDArray[np.bool_]) -> dict[str, Any]:
    return {
        "tokens": int(chosen.sum()),
        "perplexity": {
            "baseline": perplexity(scores.nll_baseline[chosen]),
            "quantized": perplexity(scores.nll_quantized[chosen]),
        },
        "kl": None if scores.kl is None else {"mean": float(scores.kl[chosen].mean())},
        "top1": None if scores.same_top1 is None else float(scores.same_top1[chosen].mean()),
    }


def _blocks(windows: int, *columns: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The mean of each column in each window: [windows, columns]."""
    return np.stack([column.reshape(windows, -1).mean(1) for column in columns], axis=1)


def _bounds(found: tuple[float, float], least: float = -np.inf) -> list[float] | None:
    return None if np.isnan(found[0]) else [max(float(bound), least) for bound in found]

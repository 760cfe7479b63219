"""SmoothQuant: part of the activations' spread moves into the weights (Xiao et al. 2022, arXiv 2211.10438).

s_j = max|x_j|^alpha / max|W_j|^(1 - alpha), along the same pairs as AWQ. It is meant for runtimes that round
activations too; if only weights are rounded, transforms/awq.py chooses by the error itself.
"""

from __future__ import annotations

import torch

from r1quant.engine.transforms.folds import Fold

SMALLEST = 1e-5


def scale(weight: torch.Tensor, peak: torch.Tensor, fold: Fold, alpha: float = 0.5) -> torch.Tensor:
    """The factors float32 [K] for folds.apply, equal if channels share a source.

    weight   float32 [N, K]: the linears of the fold as one stack of rows (Fold.stacked)
    peak     float32 [K]: the largest |x| of each input channel over all calibration tokens, in the float model. A
             Hessian does not tell it; it has to be gathered beside, with torch.maximum over the chunks
    alpha    share of the spread that moves: 0 evens out the weights, 1 the activations

    A channel that no token ever fills, or no weight reads, keeps factor 1. Raises ValueError if alpha is not within
    0 .. 1.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}, not within 0 .. 1")
    inputs, weights = fold.tied(peak, "amax"), fold.tied(weight.abs().amax(0), "amax")
    found = inputs**alpha / weights.clamp(min=SMALLEST) ** (1 - alpha)
    return torch.where((inputs > 0) & (weights > 0), found.clamp(min=SMALLEST), 1)

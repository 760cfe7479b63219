"""How to move a weight before it is rounded, so that it makes up for inputs that are not those of the float model."""

from __future__ import annotations

import torch

from r1quant.engine.stats import HessianAccumulator


def correction(hessian: torch.Tensor, drift: torch.Tensor, ridge: float) -> torch.Tensor:
    """What to add to the weight so that, rounding apart, the outputs come closest to those that are aimed at: the least
    squares solution D (H + ridge)^-1, float32 [N, K].

    hessian  float32 [K, K], H
    drift    float32 [N, K], D, over the tokens of H
    ridge    share of the mean diagonal of H that is added to it

    Zeros if H cannot be factored. The objective is that of GPTAQ (Li et al. 2025, arXiv 2504.02692) and Qronos (Zhang
    et al. 2025, arXiv 2505.11695).
    """
    damped = hessian.clone()
    damped.diagonal().add_(ridge * float(hessian.diagonal().mean()))
    lower, failed = torch.linalg.cholesky_ex(damped)
    if int(failed):
        return torch.zeros_like(drift)
    return torch.cholesky_solve(drift.T, lower).T


def correction_of(accumulator: HessianAccumulator, weight: torch.Tensor | None, ridge: float) -> torch.Tensor:
    """That of the tokens so far, whose drift is taken out of the accumulator.

    weight  [N, J] of the linear, if what was lacking were inputs [..., J] of it; None if they were outputs
    ridge   as of `correction`
    """
    drift, accumulator.drift = accumulator.drift, None
    assert drift is not None, "no output was said to lack anything"
    return correction(accumulator.stats.hessian, drift if weight is None else weight.float() @ drift, ridge)

"""AWQ: input channels that carry much are rounded finer (Lin et al. 2023, "AWQ", arXiv 2306.00978).

Candidates are s = a^alpha, and s = a^alpha / w^(1 - alpha), with a the magnitude of an input channel and w the largest
weight that reads it. Of them the one is taken with which plain rounding costs least, measured as tr(dW H dW^T): with
the Hessian at hand that is the error of the output itself, and nothing has to run forward.
The paper's second search, for clipped ranges, is not repeated here: engine/grids/uniform.py tries shrunken ranges
for every group of every row, weighted by diag(H).
It does not know how weights are rounded: it is given a function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from r1quant.engine.transforms.folds import Fold

POINTS = 20
ROWS = 1024
SMALLEST = 1e-4  # of the mean magnitude; below it a channel counts as silent

Round = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, eq=False)
class FactorChoice:
    """The factors that were found.

    scale    float32 [K], geometric mean 1, equal if channels share a source: for folds.apply
    alpha    its exponent; 0 without `balanced` is the identity
    balanced whether it is divided by the weights' own magnitude
    loss     tr(dW H dW^T) of plain rounding with it, on the rows that were looked at
    plain    the same without it
    """

    scale: torch.Tensor
    alpha: float
    balanced: bool
    loss: float
    plain: float


def search(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    fold: Fold,
    rounded: Round,
    magnitude: torch.Tensor | None = None,
    rows: int = ROWS,
) -> FactorChoice:
    """The best of 2 x 20 factors for the linears of a fold; the identity is among them.

    weight     float32 [N, K], the linears as one stack of rows (Fold.stacked), on the device of hessian
    hessian    float32 [K, K], X^T X of their input
    rounded    (float32 [n, K], importance float32 [K] with mean 1) -> the rows as they come back from the grid
    magnitude  float32 [K], mean |x| of each channel as in the paper; None takes its root mean square, from diag(H)
    rows       how many rows, taken evenly from the stack, are rounded and measured for each candidate: the cost is
               40 (n K^2 + rounding n K weights)
    """
    diagonal = hessian.diagonal()
    squares = diagonal if magnitude is None else magnitude.square()
    inputs, largest = fold.tied(squares, "mean").sqrt(), fold.tied(weight.abs().amax(0), "amax")
    looked_at = weight[:: -(-len(weight) // rows)]

    def loss(scale: torch.Tensor) -> float:
        importance = diagonal / scale.square()
        importance = importance / importance.mean().clamp(min=torch.finfo(torch.float32).tiny)
        error = rounded(looked_at * scale, importance) / scale - looked_at
        return float(((error @ hessian) * error).sum(dtype=torch.float64))

    plain = loss(torch.ones_like(inputs))
    best = FactorChoice(torch.ones_like(inputs), 0.0, False, plain, plain)
    for alpha, balanced, scale in _candidates(_living(inputs), _living(largest)):
        found = loss(scale)
        if found < best.loss:
            best = FactorChoice(scale, alpha, balanced, found, plain)
    return best


def _candidates(inputs: torch.Tensor, largest: torch.Tensor) -> Iterator[tuple[float, bool, torch.Tensor]]:
    for step in range(POINTS):
        alpha = step / POINTS
        yield alpha, True, _centred(inputs**alpha / largest ** (1 - alpha))
        if step:
            yield alpha, False, _centred(inputs**alpha)


def _centred(scale: torch.Tensor) -> torch.Tensor:
    """With geometric mean 1."""
    return scale / scale.log().mean().exp()


def _living(values: torch.Tensor) -> torch.Tensor:
    """values [K] over their mean; 1 if they are next to nothing, so that silent channels are left alone."""
    relative = values / values.mean().clamp(min=torch.finfo(torch.float32).tiny)
    return torch.where(relative > SMALLEST, relative, 1)

"""Feedback: rounding column by column, each column corrected for the errors already made, on a grid of any kind.

With H = L D L^T, column j is rounded at w_j + sum over the columns k already rounded of (w_k - q_k) L[k, j]. This is
GPTQ (Frantar et al. 2022) in the form that needs no inverse (Chee et al. 2023, "QuIP", theorem 6, shows that the two
are the same). If the rows of a weight are coupled by H_O, each weight is corrected for the errors of the rows below it
as well (Tseng et al. 2025, "Model-Preserving Adaptive Rounding", arXiv 2505.22988).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from r1quant.engine.grids.rounding import Block, Codes, Coupling, Rounding

BLOCK = 128  # columns that are rounded before their errors are multiplied into the rest
MOST_DAMPING = 1.0


@dataclass(frozen=True, eq=False)
class Factored:
    """The damped Hessian with rows and columns in `order`, as L D L^T; the last column is rounded first.

    lower    L D^(1/2), float32 [K, K]
    order    int64 [K]
    damping  the share of the mean diagonal that was added to the diagonal
    """

    lower: torch.Tensor
    order: npt.NDArray[np.int64]
    damping: float


def factor(
    hessian: torch.Tensor, damping: float, act_order: bool, run: int = 1, shrinkage: float = 0.0
) -> Factored | None:
    """Cholesky of the damped Hessian float32 [K, K]; damping rises tenfold until it succeeds, None past MOST_DAMPING.

    act_order  round columns in descending order of the diagonal, instead of from the first to the last
    run        columns that stay together as they are, ordered by the mean of their diagonal; K is a multiple of it
    shrinkage  share by which all but the diagonal is made smaller before: correlations between channels belong to the
               kind of text more than their sizes do (Ledoit and Wolf 2004, "A well-conditioned estimator for
               large-dimensional covariance matrices", for a diagonal target)
    """
    diagonal = hessian.diagonal()
    mean = float(diagonal.mean())
    if act_order:
        runs = torch.argsort(diagonal.reshape(-1, run).mean(1), stable=True)
    else:
        runs = torch.arange(len(diagonal) // run - 1, -1, -1, device=diagonal.device)
    order = (runs[:, None] * run + torch.arange(run, device=diagonal.device)).reshape(-1)
    while damping <= MOST_DAMPING and mean > 0:
        ordered = hessian[order[:, None], order]
        if shrinkage:
            ordered *= 1 - shrinkage
            ordered.diagonal().copy_(diagonal[order])
        ordered.diagonal().add_(damping * mean)
        lower, failed = torch.linalg.cholesky_ex(ordered)
        if not int(failed) and bool(torch.isfinite(lower.diagonal()).all()):
            return Factored(lower, order.cpu().numpy(), damping)
        del ordered, lower
        damping = max(damping * 10, 1e-4)
    return None


def coupling_of(outputs: tuple[torch.Tensor, ...], damping: float) -> Coupling:
    """The factors of gradient covariances float32 [n, n], with `damping` of the mean diagonal added."""
    orders, edges, flat, starts = [], [0], [], [0]
    for covariance in outputs:
        order = torch.argsort(covariance.diagonal(), stable=True)
        damped = covariance[order[:, None], order]
        smallest = torch.finfo(torch.float32).tiny
        damped.diagonal().add_(max(damping * float(covariance.diagonal().mean()), smallest))
        lower, failed = torch.linalg.cholesky_ex(damped)
        unit = torch.eye(len(covariance)) if int(failed) else lower / lower.diagonal()
        orders.append(edges[-1] + order.numpy())
        edges.append(edges[-1] + len(covariance))
        flat.append(unit.contiguous().numpy().reshape(-1))
        starts.append(starts[-1] + unit.numel())
    return Coupling(np.concatenate(orders), np.array(edges), np.concatenate(flat), np.array(starts[:-1]))


@dataclass(frozen=True, eq=False)
class RoundedColumns:
    """codes uint8 [N, K], columns in their natural order; error float32 [N, K], weight minus rounded weight, columns in
    the order of the factored Hessian."""

    codes: Codes
    error: torch.Tensor


def round_columns(
    weight: torch.Tensor, factored: Factored, rounding: Rounding, coupling: Coupling | None
) -> RoundedColumns:
    """weight: float32 [N, K], columns in the order of the factored Hessian, rows in their natural order."""
    if coupling is not None:
        weight = weight[torch.from_numpy(coupling.order)]
        rounding = rounding.take(coupling.order)
    rows, columns = weight.shape
    codes = np.empty((rows, columns), np.uint8)
    error = torch.zeros_like(weight)
    pivots = factored.lower.diagonal()
    squared = pivots.square().cpu().numpy()
    for stop in range(columns, 0, -BLOCK):
        start = max(0, stop - BLOCK)
        span = slice(start, stop)
        unit = factored.lower[start:, span] / pivots[span]
        target = torch.addmm(weight[:, span], error[:, stop:], unit[stop - start :]).cpu().numpy()
        done = rounding.round_block(
            Block(
                target,
                np.ascontiguousarray(weight[:, span].cpu().numpy()),
                np.ascontiguousarray(unit[: stop - start].cpu().numpy()),
                squared[span],
                factored.order[span],
                coupling,
            )
        )
        codes[:, span] = done.codes
        error[:, span] = torch.from_numpy(done.error).to(weight.device)
    if coupling is not None:
        codes = _scattered(codes.T, coupling.order).T
        natural = torch.empty_like(error)
        natural[torch.from_numpy(coupling.order)] = error
        error = natural
    return RoundedColumns(_scattered(codes, factored.order), error)


def _scattered(values: Codes, order: npt.NDArray[np.int64]) -> Codes:
    """Columns that are in `order`, each where it belongs."""
    natural = np.empty_like(values)
    natural[:, order] = values
    return natural

"""GPTQ: rounding column by column, each column corrected for the errors already made.

Minimises tr((W - Q) H (W - Q)^T) greedily (Frantar et al. 2022, "GPTQ"), in the form that needs no inverse: with
H = L D L^T, column j is rounded at w_j + sum over the columns k already rounded of (w_k - q_k) L[k, j]
(Chee et al. 2023, "QuIP", theorem 6, shows that the two are the same). Columns are taken in descending order of
diag(H) (act-order) while groups stay contiguous and their scales are fixed beforehand, so the result needs no
permuted g_idx. Linears that share an input are rounded as one stack of rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from r1quant.grid import Grid
from r1quant.methods import kernels, scales
from r1quant.qlinear import QLinear
from r1quant.stats import Stats

BLOCK = 128
ROWS_AT_ONCE = 4096
MOST_DAMPING = 1.0


@dataclass(frozen=True, eq=False)
class Solved:
    """What a solve gives beside the weights.

    loss       float64 [N]: (w - q) H (w - q)^T of each row, per token
    energy     float64 [N]: w H w^T of each row, per token, to which the loss compares
    damping    the share of the mean diagonal that was added to H in the end
    dead       number of input channels that were zero in every token
    rows_nearest   bool [N]: rows where plain rounding cost less and was taken
    fallback   whether H could not be factored at all, so that every row is rounded to nearest
    """

    qlinear: QLinear
    loss: npt.NDArray[np.float64]
    energy: npt.NDArray[np.float64]
    damping: float
    dead: int
    rows_nearest: npt.NDArray[np.bool_]
    fallback: bool


@dataclass(frozen=True, eq=False)
class Factored:
    """H with rows and columns in `order`, as L D L^T. lower is L D^(1/2), float32 [K, K]; added is what damping put
    on the diagonal.
    """

    lower: torch.Tensor
    order: npt.NDArray[np.int64]
    damping: float
    added: float


def factor(stats: Stats, damping: float, act_order: bool) -> Factored | None:
    """Cholesky of the damped Hessian; damping rises tenfold until it succeeds, None past MOST_DAMPING."""
    diagonal = stats.hessian.diagonal()
    mean = float(diagonal.mean())
    if act_order:
        order = torch.argsort(diagonal, stable=True)
    else:
        order = torch.arange(len(diagonal) - 1, -1, -1, device=diagonal.device)
    while damping <= MOST_DAMPING and mean > 0:
        ordered = stats.hessian[order[:, None], order]
        ordered.diagonal().add_(damping * mean)
        lower, failed = torch.linalg.cholesky_ex(ordered)
        if not int(failed) and bool(torch.isfinite(lower.diagonal()).all()):
            return Factored(lower, order.cpu().numpy(), damping, damping * mean)
        del ordered, lower
        damping = max(damping * 10, 1e-4)
    return None


def quantize(
    weight: torch.Tensor,
    stats: Stats,
    grid: Grid,
    *,
    search: bool = True,
    act_order: bool = True,
    damping: float = 0.01,
) -> Solved:
    """weight: float32 [N, K] on the device of the statistics, finite; rows of several linears may be stacked."""
    factored = factor(stats, damping, act_order)
    diagonal = stats.hessian.diagonal()
    floor = max(float(diagonal.mean()) * damping, torch.finfo(torch.float32).tiny)
    importance = (diagonal + floor).cpu().numpy()
    importance /= importance.mean()
    w = np.ascontiguousarray(weight.cpu().numpy())
    chosen = scales.choose(w, grid, importance, search)
    nearest = np.empty(w.shape, np.uint8)
    kernels.round_nearest(w, chosen.scale, chosen.zero, chosen.group, grid.levels - 1, nearest)
    rows = len(w)
    dead = int(stats.dead.sum())
    if factored is None:
        plain = QLinear(nearest, chosen.scale.astype(np.float16), chosen.zero, chosen.group, grid.bits)
        loss = _loss(weight - torch.from_numpy(plain.dequantize()).to(weight.device), stats.hessian)
        energy = _loss(weight, stats.hessian)
        every = np.ones(rows, np.bool_)
        return Solved(plain, loss / stats.tokens, energy / stats.tokens, MOST_DAMPING, dead, every, True)
    ordered = torch.from_numpy(np.ascontiguousarray(w[:, factored.order])).to(weight.device)
    codes, error = _round(ordered, factored, chosen, grid)
    loss, size = _norms(error, factored.lower), _norms(error, None)
    error = _rounding_error(ordered, nearest[:, factored.order], chosen, factored.order)
    plain_loss, plain_size = _norms(error, factored.lower), _norms(error, None)
    del error
    worse = loss > plain_loss
    codes = _unordered(codes, factored.order)
    codes[worse] = nearest[worse]
    qlinear = QLinear(codes, chosen.scale.astype(np.float16), chosen.zero, chosen.group, grid.bits)
    undamped = np.where(worse, plain_loss - factored.added * plain_size, loss - factored.added * size)
    energy = _norms(ordered, factored.lower) - factored.added * _norms(ordered, None)
    per_token = np.maximum(undamped, 0) / stats.tokens
    return Solved(qlinear, per_token, energy / stats.tokens, factored.damping, dead, worse, False)


def _round(
    w: torch.Tensor, factored: Factored, chosen: scales.Scales, grid: Grid
) -> tuple[npt.NDArray[np.uint8], torch.Tensor]:
    """Codes uint8 [N, K] and errors float32 [N, K] (weight minus rounded), columns still in order."""
    rows, columns = w.shape
    group = chosen.group[factored.order]
    codes = np.empty((rows, columns), np.uint8)
    error = torch.zeros_like(w)
    pivots = factored.lower.diagonal()
    for stop in range(columns, 0, -BLOCK):
        start = max(0, stop - BLOCK)
        block = slice(start, stop)
        unit = factored.lower[start:, block] / pivots[block]
        target = torch.addmm(w[:, block], error[:, stop:], unit[stop - start :])
        part_codes = np.empty((rows, stop - start), np.uint8)
        part_error = np.empty((rows, stop - start), np.float32)
        kernels.round_block(
            target.cpu().numpy(),
            np.ascontiguousarray(w[:, block].cpu().numpy()),
            np.ascontiguousarray(unit[: stop - start].cpu().numpy()),
            chosen.scale,
            chosen.zero,
            group[block],
            grid.levels - 1,
            part_codes,
            part_error,
        )
        codes[:, block] = part_codes
        error[:, block] = torch.from_numpy(part_error).to(w.device)
    return codes, error


def _unordered(values: npt.NDArray[np.uint8], order: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    natural = np.empty_like(values)
    natural[:, order] = values
    return natural


def _rounding_error(
    w: torch.Tensor, codes: npt.NDArray[np.uint8], chosen: scales.Scales, order: npt.NDArray[np.int64]
) -> torch.Tensor:
    plain = QLinear(codes, chosen.scale.astype(np.float16), chosen.zero, chosen.group[order], 8)
    return w - torch.from_numpy(plain.dequantize()).to(w.device)


def _norms(rows: torch.Tensor, lower: torch.Tensor | None) -> npt.NDArray[np.float64]:
    """|row L|^2 of each row, float64 [N]: the quadratic form of H = L L^T, or of the identity."""
    pieces = (rows[i : i + ROWS_AT_ONCE] for i in range(0, len(rows), ROWS_AT_ONCE))
    parts = [(piece if lower is None else piece @ lower).square().sum(1) for piece in pieces]
    return torch.cat(parts).double().cpu().numpy()


def _loss(rows: torch.Tensor, hessian: torch.Tensor) -> npt.NDArray[np.float64]:
    """row H row^T of each row, float64 [N]."""
    return ((rows @ hessian) * rows).sum(1).double().cpu().numpy()

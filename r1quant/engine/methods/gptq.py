"""GPTQ: rounding column by column, each column corrected for the errors already made.

Minimises tr((W - Q) H (W - Q)^T) greedily (Frantar et al. 2022, "GPTQ"), in the form that needs no inverse: with
H = L D L^T, column j is rounded at w_j + sum over the columns k already rounded of (w_k - q_k) L[k, j]
(Chee et al. 2023, "QuIP", theorem 6, shows that the two are the same). Columns are taken in descending order of
diag(H) (act-order) while groups stay contiguous and their scales are fixed beforehand, so the result needs no
permuted g_idx. Linears that share their statistics are rounded as one stack of rows.

Where the covariance H_O of the gradients at the outputs is known, what is minimised is tr(H_O (W - Q) H (W - Q)^T), the
KL divergence itself to second order: rows are corrected for each other as well (Tseng et al. 2025, "Model-Preserving
Adaptive Rounding", arXiv 2505.22988; the weights of tokens in H are those of Kim et al. 2025, "GuidedQuant", arXiv
2505.07004). Where inputs are not what they were in the float model, W is first moved to where it makes up for that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from r1quant.core.grid import Grid
from r1quant.core.qlinear import QLinear
from r1quant.engine.methods import kernels, scales
from r1quant.engine.stats import Stats

BLOCK = 128
ROWS_AT_ONCE = 4096
MOST_DAMPING = 1.0
RIDGE = 0.3  # of the mean diagonal


@dataclass(frozen=True, eq=False)
class Solved:
    """What a solve gives beside the weights.

    loss       float64 [N]: (w - q) H (w - q)^T of each row, per token
    energy     float64 [N]: w H w^T of each row, per token, to which the loss compares
    damping    the share of the mean diagonal that was added to H in the end
    dead       number of input channels that were zero in every token
    rows_nearest   bool [N]: rows where plain rounding cost less and was taken
    fallback   whether H could not be factored at all, so that every row is rounded to nearest
    predicted_kl   float64 [N], where H_O is known: each row's share of 1/2 tr(H_O (W - Q) H (W - Q)^T) per token, in
               nats
    """

    qlinear: QLinear
    loss: npt.NDArray[np.float64]
    energy: npt.NDArray[np.float64]
    damping: float
    dead: int
    rows_nearest: npt.NDArray[np.bool_]
    fallback: bool
    predicted_kl: npt.NDArray[np.float64] | None = None


@dataclass(frozen=True, eq=False)
class Factored:
    """H with rows and columns in `order`, as L D L^T. lower is L D^(1/2), float32 [K, K]; added is what damping put
    on the diagonal.
    """

    lower: torch.Tensor
    order: npt.NDArray[np.int64]
    damping: float
    added: float


def factor(hessian: torch.Tensor, damping: float, act_order: bool) -> Factored | None:
    """Cholesky of the damped Hessian; damping rises tenfold until it succeeds, None past MOST_DAMPING."""
    diagonal = hessian.diagonal()
    mean = float(diagonal.mean())
    if act_order:
        order = torch.argsort(diagonal, stable=True)
    else:
        order = torch.arange(len(diagonal) - 1, -1, -1, device=diagonal.device)
    while damping <= MOST_DAMPING and mean > 0:
        ordered = hessian[order[:, None], order]
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
    correction: torch.Tensor | None = None,
    *,
    search: bool = True,
    act_order: bool = True,
    damping: float = 0.01,
    row_damping: float = 0.2,
    feedback: bool = True,
) -> Solved:
    """weight: float32 [N, K] on the device of the statistics, finite; rows of several linears may be stacked.
    correction: float32 [N, K], what to add to it before it is rounded.

    Without feedback every weight is rounded to nearest, with scales that the statistics choose.
    """
    factored = factor(stats.hessian, damping, act_order) if feedback else None
    target = weight if correction is None else weight + correction
    diagonal = stats.hessian.diagonal()
    floor = max(float(diagonal.mean()) * damping, torch.finfo(torch.float32).tiny)
    importance = (diagonal + floor).cpu().numpy()
    importance /= importance.mean()
    w = np.ascontiguousarray(target.cpu().numpy())
    chosen = scales.choose(w, grid, importance, search)
    nearest = np.empty(w.shape, np.uint8)
    kernels.round_nearest(w, chosen.scale, chosen.zero, chosen.group, grid.levels - 1, nearest)
    worse = np.ones(len(w), np.bool_)
    codes = nearest
    if factored is not None:
        ordered = torch.from_numpy(np.ascontiguousarray(w[:, factored.order])).to(weight.device)
        rows = None if stats.outputs is None else couple(stats.outputs, row_damping)
        codes, error = _round(ordered, factored, chosen, grid, rows)
        if rows is None:
            plain = _rounding_error(ordered, nearest[:, factored.order], chosen, factored.order)
            worse = _norms(error, factored.lower) > _norms(plain, factored.lower)
            del plain
        else:
            worse[:] = False
        del error
        codes = _unordered(codes, factored.order)
        codes[worse] = nearest[worse]
    qlinear = QLinear(codes, chosen.scale.astype(np.float16), chosen.zero, chosen.group, grid.bits)
    wrong = weight - torch.from_numpy(qlinear.dequantize()).to(weight.device)
    felt = wrong @ stats.hessian
    loss = _products(felt, wrong) / stats.tokens
    energy = _products(weight @ stats.hessian, weight) / stats.tokens
    failed = feedback and factored is None
    used = factored.damping if factored is not None else MOST_DAMPING if failed else 0.0
    divergence = None if stats.outputs is None else predicted(wrong, felt, stats)
    return Solved(qlinear, loss, energy, used, int(stats.dead.sum()), worse, failed, divergence)


def correction(hessian: torch.Tensor, drift: torch.Tensor, ridge: float = RIDGE) -> torch.Tensor:
    """What to add to the weight so that, rounding apart, the outputs come closest to those that are wanted: the least
    squares solution D (H + ridge)^-1, [N, K], D the drift over the tokens of H. Its objective is that of GPTAQ (Li et
    al. 2025, arXiv 2504.02692) and Qronos (Zhang et al. 2025, arXiv 2505.11695)."""
    solvable = hessian.clone()
    solvable.diagonal().add_(ridge * float(hessian.diagonal().mean()))
    lower, failed = torch.linalg.cholesky_ex(solvable)
    if int(failed):
        return torch.zeros_like(drift)
    return torch.cholesky_solve(drift.T, lower).T


def predicted(wrong: torch.Tensor, felt: torch.Tensor, stats: Stats) -> npt.NDArray[np.float64]:
    """The KL divergence per token that an error E [N, K] of the weight costs, in nats, 1/2 tr(H_O E H_I E^T), as the
    shares of its rows, float64 [N]; felt is E H_I. A share may be below zero, their sum not."""
    assert stats.outputs is not None
    shares, start = [], 0
    for part in stats.outputs:
        rows = slice(start, start + len(part))
        shares.append(_products(part.to(wrong.device) @ wrong[rows], felt[rows]))
        start += len(part)
    return np.concatenate(shares) / 2 / stats.tokens


@dataclass(frozen=True, eq=False)
class Coupled:
    """The factors of H_O = L D L^T, one for each run of outputs.

    order    int64 [N]: the rows, the most important of each run last
    edges    int64 [R + 1], of the runs; flat float32: their L, one after the other; starts int64 [R]
    """

    order: npt.NDArray[np.int64]
    edges: npt.NDArray[np.int64]
    flat: npt.NDArray[np.float32]
    starts: npt.NDArray[np.int64]


def couple(outputs: tuple[torch.Tensor, ...], damping: float) -> Coupled:
    """The factors of gradient covariances float32 [n, n], with `damping` of the mean diagonal added."""
    order, edges, flat, starts = [], [0], [], [0]
    for part in outputs:
        chosen = torch.argsort(part.diagonal(), stable=True)
        damped = part[chosen[:, None], chosen]
        damped.diagonal().add_(max(damping * float(part.diagonal().mean()), torch.finfo(torch.float32).tiny))
        lower, failed = torch.linalg.cholesky_ex(damped)
        unit = torch.eye(len(part)) if int(failed) else lower / lower.diagonal()
        order.append(edges[-1] + chosen.numpy())
        edges.append(edges[-1] + len(part))
        flat.append(unit.contiguous().numpy().reshape(-1))
        starts.append(starts[-1] + unit.numel())
    return Coupled(np.concatenate(order), np.array(edges), np.concatenate(flat), np.array(starts[:-1]))


def _round(
    w: torch.Tensor, factored: Factored, chosen: scales.Scales, grid: Grid, coupled: Coupled | None
) -> tuple[npt.NDArray[np.uint8], torch.Tensor]:
    """Codes uint8 [N, K] and errors float32 [N, K] (weight minus rounded), columns still in order."""
    if coupled is not None:
        w = w[torch.from_numpy(coupled.order)]
        chosen = scales.Scales(chosen.scale[coupled.order], chosen.zero[coupled.order], chosen.group)
    rows, columns = w.shape
    group = chosen.group[factored.order]
    codes = np.empty((rows, columns), np.uint8)
    error = torch.zeros_like(w)
    pivots = factored.lower.diagonal()
    for stop in range(columns, 0, -BLOCK):
        start = max(0, stop - BLOCK)
        block = slice(start, stop)
        unit = factored.lower[start:, block] / pivots[block]
        target = torch.addmm(w[:, block], error[:, stop:], unit[stop - start :]).cpu().numpy()
        part = np.ascontiguousarray(w[:, block].cpu().numpy())
        factor = np.ascontiguousarray(unit[: stop - start].cpu().numpy())
        grids = chosen.scale, chosen.zero, group[block], grid.levels - 1
        found = np.empty((rows, stop - start), np.uint8), np.empty((rows, stop - start), np.float32)
        if coupled is None:
            kernels.round_block(target, part, factor, *grids, *found)
        else:
            kernels.round_block_coupled(
                target, part, factor, coupled.edges, coupled.flat, coupled.starts, *grids, *found
            )
        codes[:, block] = found[0]
        error[:, block] = torch.from_numpy(found[1]).to(w.device)
    if coupled is not None:
        codes = _unordered(codes.T, coupled.order).T
        natural = torch.empty_like(error)
        natural[torch.from_numpy(coupled.order)] = error
        error = natural
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


def _products(rows: torch.Tensor, others: torch.Tensor) -> npt.NDArray[np.float64]:
    """The inner products of rows with those of the same number, float64 [N]."""
    return (rows * others).sum(1, dtype=torch.float64).cpu().numpy()

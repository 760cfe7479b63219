"""GPTQ: rounding column by column, each column corrected for the errors already made.

Minimises tr((W - Q) H (W - Q)^T) greedily (Frantar et al. 2022, "GPTQ"). Columns are taken in descending order of
diag(H) (act-order) while groups stay contiguous and their parameters are fixed beforehand, so the result needs no
permuted g_idx. Linears that share their statistics are rounded as one stack of rows.

If the covariance H_O of the gradients at the outputs is known, what is minimised is tr(H_O (W - Q) H (W - Q)^T), the
KL divergence itself to second order: rows are corrected for each other as well (Tseng et al. 2025, "Model-Preserving
Adaptive Rounding", arXiv 2505.22988; the weights of tokens in H are those of Kim et al. 2025, "GuidedQuant", arXiv
2505.07004).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from r1quant.core.grid import ValueGrid
from r1quant.engine.grids.rounding import Codes, Rounding, fit
from r1quant.engine.methods.feedback import MOST_DAMPING, Factored, coupling_of, factor, round_columns
from r1quant.engine.methods.method import RoundingOptions, Solved
from r1quant.engine.stats import Stats

ROWS_AT_ONCE = 4096


def quantize(weight: torch.Tensor, stats: Stats | None, grid: ValueGrid, options: RoundingOptions) -> Solved:
    """As method.Quantize says. A row that plain rounding serves better is rounded so, but not if rows are coupled."""
    assert stats is not None, "gptq is calibrated"
    w = np.ascontiguousarray(weight.cpu().numpy())
    rounding = fit(w, grid, stats.importance(options.damping), options.search)
    factored = factor(stats.hessian, options.damping, options.act_order, rounding.run, options.shrinkage)
    nearest = rounding.nearest(w)
    if factored is None:
        return Solved(rounding.linear(nearest), MOST_DAMPING, np.ones(len(w), np.bool_), fallback=True)
    ordered = torch.from_numpy(np.ascontiguousarray(w[:, factored.order])).to(weight.device)
    coupling = None if stats.outputs is None else coupling_of(stats.outputs, options.row_damping)
    rounded = round_columns(ordered, factored, rounding, coupling)
    worse = np.zeros(len(w), np.bool_)
    if coupling is None:
        nearest_error = _error(ordered, rounding, nearest, factored)
        worse = _norms(rounded.error, factored.lower) > _norms(nearest_error, factored.lower)
        del nearest_error
    rounded.codes[worse] = nearest[worse]
    return Solved(rounding.linear(rounded.codes), factored.damping, worse)


def _error(ordered: torch.Tensor, rounding: Rounding, codes: Codes, factored: Factored) -> torch.Tensor:
    """What codes uint8 [N, K] leave, columns in the order of the factored Hessian."""
    values = rounding.linear(codes).dequantize()[:, factored.order]
    return ordered - torch.from_numpy(values).to(ordered.device)


def _norms(rows: torch.Tensor, lower: torch.Tensor) -> npt.NDArray[np.float64]:
    """|row L|^2 of each row, float64 [N]: the quadratic form of H = L L^T."""
    pieces = (rows[i : i + ROWS_AT_ONCE] for i in range(0, len(rows), ROWS_AT_ONCE))
    return torch.cat([(piece @ lower).square().sum(1) for piece in pieces]).double().cpu().numpy()

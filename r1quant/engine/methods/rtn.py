"""Round to nearest: every weight alone. Statistics, if there are any, only choose the parameters of the grid."""

from __future__ import annotations

import torch

from r1quant.core.grid import ValueGrid
from r1quant.engine.grids.rounding import nearest
from r1quant.engine.methods.method import RoundingOptions, Solved
from r1quant.engine.stats import Stats


def quantize(weight: torch.Tensor, stats: Stats | None, grid: ValueGrid, options: RoundingOptions) -> Solved:
    """As method.Quantize says."""
    values = weight.contiguous().cpu().numpy()
    importance = None if stats is None else stats.importance(options.damping)
    return Solved(nearest(values, grid, importance, options.search), None if stats is None else 0.0)

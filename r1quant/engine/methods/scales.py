"""Scales and zero points for the groups of a weight, chosen before rounding.

Without search: min-max. With search: of many candidates the one whose plain rounding costs least, each weight's
squared error counted with the importance of its input channel (the diagonal of the Hessian).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from r1quant.core.grid import DROPPED_BITS, LARGEST_SCALE, SMALLEST_SCALE, Grid
from r1quant.engine.methods import kernels

SHRINK = np.linspace(0.54, 1.14, 31, dtype=np.float32)
FULL_RANGE = np.linspace(0.70, 1.15, 31, dtype=np.float32)
NEIGHBOURS = 1  # zero points tried on each side of the nearest


@dataclass(frozen=True, eq=False)
class Scales:
    """scale float32 [N, G], exact in the grid's scale dtype; zero uint8 [N, G]; group int32 [K]."""

    scale: npt.NDArray[np.float32]
    zero: npt.NDArray[np.uint8]
    group: npt.NDArray[np.int32]


def choose(
    weight: npt.NDArray[np.float32], grid: Grid, importance: npt.NDArray[np.float32] | None, search: bool
) -> Scales:
    """Scales for weight [N, K]; importance [K] is 1 where it is not given."""
    rows, columns = weight.shape
    size = columns if grid.group_size == -1 else grid.group_size
    counted = np.ones(columns, np.float32) if importance is None else importance
    scale = np.empty((rows, columns // size), np.float32)
    zero = np.full(scale.shape, grid.midpoint, np.uint8)
    one, none = np.ones(1, np.float32), np.empty(0, np.float32)
    drop = DROPPED_BITS[grid.scale_dtype]
    low, high = np.float32(SMALLEST_SCALE), np.float32(LARGEST_SCALE[grid.scale_dtype])
    shrinks, full = (SHRINK, FULL_RANGE) if search else (one, none)
    if grid.symmetric:
        kernels.search_symmetric(weight, counted, size, grid.bits, shrinks, full, drop, low, high, scale)
    else:
        reach = NEIGHBOURS if search else 0
        kernels.search_asymmetric(
            weight, counted, size, grid.bits, grid.zero_min, shrinks, reach, drop, low, high, scale, zero
        )
    return Scales(scale, zero, grid.group_of_column(columns))

"""The uniform grid: scales and zero points for the groups of a weight, chosen before rounding; and rounding to them.

Without search: min-max. With search: of many candidates the one whose plain rounding costs least, each weight's
squared error counted with the importance of its input channel (the diagonal of the Hessian).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from r1quant.core.grid import DROPPED_BITS, LARGEST_SCALE, SMALLEST_SCALE, Grid
from r1quant.core.qlinear import QLinear
from r1quant.engine.grids import uniform_kernels as kernels
from r1quant.engine.grids.rounding import Block, Codes, Floats, RoundedBlock

SHRINK = np.linspace(0.54, 1.14, 31, dtype=np.float32)
FULL_RANGE = np.linspace(0.70, 1.15, 31, dtype=np.float32)
NEIGHBOURS = 1  # zero points tried on each side of the nearest


@dataclass(frozen=True, eq=False)
class UniformRounding:
    """scale float32 [N, G], exact in the grid's scale dtype; zero uint8 [N, G]; group int32 [K]"""

    scale: Floats
    zero: Codes
    group: npt.NDArray[np.int32]
    bits: int

    run: ClassVar[int] = 1

    @property
    def top(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1

    def nearest(self, weight: Floats) -> Codes:
        codes = np.empty(weight.shape, np.uint8)
        kernels.round_nearest(weight, self.scale, self.zero, self.group, self.top, codes)
        return codes

    def round_block(self, block: Block) -> RoundedBlock:
        grid = self.scale, self.zero, self.group[block.columns], self.top
        done = RoundedBlock(np.empty(block.weight.shape, np.uint8), np.empty(block.weight.shape, np.float32))
        inputs = block.target, block.weight, block.factor
        if block.coupling is None:
            kernels.round_block(*inputs, *grid, done.codes, done.error)
        else:
            rows = block.coupling
            kernels.round_block_coupled(*inputs, rows.edges, rows.flat, rows.starts, *grid, done.codes, done.error)
        return done

    def take(self, rows: npt.NDArray[np.int64]) -> UniformRounding:
        return UniformRounding(self.scale[rows], self.zero[rows], self.group, self.bits)

    def linear(self, codes: Codes) -> QLinear:
        return QLinear(codes, self.scale.astype(np.float16), self.zero, self.group, self.bits)


def fit(weight: Floats, grid: Grid, importance: Floats | None, search: bool) -> UniformRounding:
    """As rounding.Fit says."""
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
    return UniformRounding(scale, zero, grid.group_of_column(columns), grid.bits)

"""GGUF's block types as grids: their scales and minima, in the form in which they are stored, chosen before rounding.

Types with a code book of combinations are rounded by r1quant.engine.grids.codebook, all others weight by weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from r1quant.core.blocklinear import BlockLinear
from r1quant.core.blocktypes import BlockGrid
from r1quant.engine.grids import block_kernels as kernels
from r1quant.engine.grids import codebook
from r1quant.engine.grids.levels import LevelRounding
from r1quant.engine.grids.rounding import Block, Codes, Floats, RoundedBlock, Rounding

ROUNDS = 4
WIDE, NARROW = np.linspace(0.5, 1, 11, dtype=np.float32), np.linspace(0.75, 1, 6, dtype=np.float32)  # of a range
FULL_RANGE = np.linspace(0.6, 1.15, 23, dtype=np.float32)
MANY_LEVELS = np.linspace(0.9, 1.05, 7, dtype=np.float32)
WHOLE = np.ones(1, np.float32)


@dataclass(frozen=True, eq=False)
class BlockRounding:
    """A Rounding. empty: all but the codes, which have no columns; values: the same as float scales and offsets."""

    empty: BlockLinear
    values: LevelRounding

    run: ClassVar[int] = 1

    def nearest(self, weight: Floats) -> Codes:
        return self.values.nearest(weight)

    def round_block(self, block: Block) -> RoundedBlock:
        return self.values.round_block(block)

    def take(self, rows: npt.NDArray[np.int64]) -> BlockRounding:
        return BlockRounding(self.empty.take(rows), self.values.take(rows))

    def linear(self, codes: Codes) -> BlockLinear:
        e = self.empty
        return BlockLinear(e.type, codes, e.d, e.scales, e.dmin, e.minima)


def fit(weight: Floats, grid: BlockGrid, importance: Floats | None, search: bool) -> Rounding:
    """As rounding.Fit says. Columns must be a multiple of the type's block."""
    if grid.of.book is not None:
        return codebook.fit(weight, grid, importance, search)
    counted = np.ones(weight.shape[1], np.float32) if importance is None else importance
    empty = _chosen(weight, grid, counted, search)
    return BlockRounding(empty, rounding_of(empty, weight.shape[1]))


def rounding_of(linear: BlockLinear, columns: int) -> LevelRounding:
    """Rounding to the values that the scales and minima of a linear allow."""
    of = linear.of
    group = (np.arange(columns) // of.group).astype(np.int32)
    offset = linear.offset if linear.dmin is not None else np.zeros_like(linear.scale)
    return LevelRounding(of.name, np.array(of.levels, np.float32), linear.scale, offset, group)


def _chosen(weight: Floats, grid: BlockGrid, counted: Floats, search: bool) -> BlockLinear:
    """All but the codes, which have no columns yet."""
    of, (rows, columns) = grid.of, weight.shape
    none, levels = np.empty((rows, 0), np.uint8), np.array(of.levels, np.float32)
    cells = cells_of(levels)
    shrinks = (MANY_LEVELS if len(levels) >= 64 else FULL_RANGE) if search else WHOLE
    ranges = (WIDE if len(levels) < 16 else NARROW) if search else WHOLE
    d = np.zeros((rows, columns // of.block), np.float32)
    dmin, rounds = np.zeros_like(d), ROUNDS if search else 1
    if of.scales is None and of.minima is None:
        kernels.scale_alone(weight, counted, of.block, levels, cells, shrinks, d)
        return BlockLinear(of.name, none, d.astype(np.float16))
    if of.scales is None:
        kernels.scale_and_offset(weight, counted, of.block, levels, cells, ranges, d, dmin)
        return BlockLinear(of.name, none, d.astype(np.float16), dmin=dmin.astype(np.float16))
    scales, (low, high) = np.zeros((rows, columns // of.group), np.int8), of.scales
    if of.minima is None:
        kernels.two_level_centred(weight, counted, of.group, levels, cells, low, high, shrinks, 1, rounds, d, scales)
        return BlockLinear(of.name, none, d.astype(np.float16), scales)
    minima, reach = np.zeros(scales.shape, np.uint8), 2 if high <= 15 else 1
    kernels.two_level_affine(
        weight, counted, of.group, levels, cells, high, ranges, reach, rounds, d, dmin, scales, minima
    )
    return BlockLinear(of.name, none, d.astype(np.float16), scales, dmin.astype(np.float16), minima)


def cells_of(levels: Floats) -> npt.NDArray[np.uint8]:
    """For levels that are integers, the place of the level nearest to each integer from the first to the last, so that
    the level nearest to a number is that of the integer below it, or the next. Empty if the levels are neighbours."""
    if bool((np.diff(levels) == 1).all()):
        return np.empty(0, np.uint8)
    middles = (levels[1:] + levels[:-1]) / 2
    return np.searchsorted(middles, np.arange(levels[0], levels[-1] + 1), side="right").astype(np.uint8)

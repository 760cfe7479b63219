"""Rounding to code books of numbers: what a grid of a new kind needs beside its levels and the choice of its scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from r1quant.core.levels import LevelLinear
from r1quant.engine.grids import level_kernels as kernels
from r1quant.engine.grids.rounding import Block, Codes, Floats, RoundedBlock


@dataclass(frozen=True, eq=False)
class LevelRounding:
    """A Rounding. kind, levels, scale, offset and group as in LevelLinear, of a weight [N, K]."""

    kind: str
    levels: Floats
    scale: Floats
    offset: Floats
    group: npt.NDArray[np.int32]

    run: ClassVar[int] = 1

    @property
    def even(self) -> bool:
        """Whether the levels are neighbouring integers."""
        return bool((np.diff(self.levels) == 1).all())

    def nearest(self, weight: Floats) -> Codes:
        codes = np.empty(weight.shape, np.uint8)
        kernels.round_nearest(weight, self.levels, self.even, self.scale, self.offset, self.group, codes)
        return codes

    def round_block(self, block: Block) -> RoundedBlock:
        grid = self.levels, self.even, self.scale, self.offset, self.group[block.columns]
        done = RoundedBlock(np.empty(block.weight.shape, np.uint8), np.empty(block.weight.shape, np.float32))
        inputs = block.target, block.weight, block.factor
        if block.coupling is None:
            kernels.round_block(*inputs, *grid, done.codes, done.error)
        else:
            rows = block.coupling
            kernels.round_block_coupled(*inputs, rows.edges, rows.flat, rows.starts, *grid, done.codes, done.error)
        return done

    def take(self, rows: npt.NDArray[np.int64]) -> LevelRounding:
        return LevelRounding(self.kind, self.levels, self.scale[rows], self.offset[rows], self.group)

    def linear(self, codes: Codes) -> LevelLinear:
        return LevelLinear(self.kind, codes, self.levels, self.scale, self.offset, self.group)

"""Rounding: a grid whose parameters have been chosen for one weight. All that a method knows of a grid."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt

from r1quant.core.grid import ValueGrid
from r1quant.core.grids import KINDS
from r1quant.core.qlinear import QuantizedLinear

Codes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Coupling:
    """How the rows of a weight are corrected for each other: factors of H_O = L D L^T, one for each run of outputs.

    order    int64 [N]: the rows, the most important of each run last
    edges    int64 [R + 1], of the runs
    flat     float32: the unit lower triangular L of the runs, one after the other
    starts   int64 [R], where each of them begins
    """

    order: npt.NDArray[np.int64]
    edges: npt.NDArray[np.int64]
    flat: Floats
    starts: npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Block:
    """Columns that are rounded from the last to the first, each corrected for the errors of those before it.

    target    float32 [N, B]: the weights with the feedback of earlier blocks added; may be overwritten
    weight    float32 [N, B]: the weights that errors are counted from
    factor    float32 [B, B]: unit lower triangular L of the block's H = L D L^T
    pivots    float32 [B]: D
    columns   int64 [B]: which input columns these are
    coupling  if rows are corrected for each other as well; they are in its order already
    """

    target: Floats
    weight: Floats
    factor: Floats
    pivots: Floats
    columns: npt.NDArray[np.int64]
    coupling: Coupling | None


@dataclass(frozen=True, eq=False)
class RoundedBlock:
    """codes uint8 [N, B]; error float32 [N, B], weight minus rounded weight."""

    codes: Codes
    error: Floats


class Rounding(Protocol):
    """The values that each number of one weight [N, K] may take, N rows and K input columns."""

    @property
    def run(self) -> int:
        """How many neighbouring columns are rounded at once, so that an order must keep them together as they are."""

    def nearest(self, weight: Floats) -> Codes:
        """The codes of the values nearest to float32 [N, K]. Columns that are rounded at once count by importance."""

    def round_block(self, block: Block) -> RoundedBlock:
        """Rounds some columns with feedback."""

    def take(self, rows: npt.NDArray[np.int64]) -> Rounding:
        """The same for the rows int64 [n], in this order."""

    def linear(self, codes: Codes) -> QuantizedLinear:
        """What codes uint8 [N, K] stand for, with all the parameters that were chosen."""


class Fit(Protocol):
    """The `fit` of a module of this package."""

    def __call__(self, weight: Floats, grid: ValueGrid, importance: Floats | None, search: bool) -> Rounding:
        """Chooses the parameters of a grid for a weight float32 [N, K], finite.

        importance  float32 [K], what an error of each input column counts; None if all count alike
        search      choose parameters by the error that they leave, not by the range of the weights
        """


def fit(weight: Floats, grid: ValueGrid, importance: Floats | None, search: bool) -> Rounding:
    """As Fit says, by whatever the table has for this kind of grid."""
    engine = KINDS[grid.kind].engine
    if isinstance(engine, str):
        engine = import_module(f"r1quant.engine.grids.{engine}").fit
    return cast(Fit, engine)(weight, grid, importance, search)


def nearest(weight: Floats, grid: ValueGrid, importance: Floats | None, search: bool) -> QuantizedLinear:
    """A weight float32 [N, K] rounded to the nearest values of a grid; the rest as Fit says."""
    rounding = fit(weight, grid, importance, search)
    return rounding.linear(rounding.nearest(weight))

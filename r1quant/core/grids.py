"""The kinds of grids, as a table: how each is made for a recipe, what rounds to it, how its linears are read back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from r1quant.core.blocklinear import BlockLinear
from r1quant.core.blocktypes import BLOCKS
from r1quant.core.grid import UNIFORM, Grid, ValueGrid
from r1quant.core.qlinear import QLinear, QuantizedLinear


@dataclass(frozen=True)
class GridKind:
    """One kind of grid.

    summary  for people
    make     the grid of a recipe, given the uniform one with its bits, group size, symmetry and scales; raises
             RecipeError if it cannot be had so. None if --grid does not choose it
    engine   the function that chooses its parameters, as r1quant.engine.grids.rounding.Fit says; or the name of the
             module in r1quant/engine/grids whose `fit` it is, which is imported when the first weight is rounded
    restore  a linear out of what its `arrays` gave
    """

    summary: str
    make: Callable[[Grid], ValueGrid] | None
    engine: str | Callable[..., object]
    restore: Callable[[Mapping[str, npt.NDArray[Any]]], QuantizedLinear]


def _as_it_is(grid: Grid) -> ValueGrid:
    return grid


GRIDS: dict[str, GridKind] = {
    UNIFORM: GridKind("equal steps, a scale and a zero point for each group", _as_it_is, "uniform", QLinear.restore),
    BLOCKS: GridKind("the block types of GGUF, which --type chooses", None, "blocks", BlockLinear.restore),
}


def register_grid(name: str, kind: GridKind) -> None:
    """Adds a kind of grid for the rest of this process. Raises ValueError if the name is taken."""
    if name in GRIDS:
        raise ValueError(f"there is a grid {name} already")
    GRIDS[name] = kind

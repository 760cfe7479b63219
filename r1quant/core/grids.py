"""The kinds of grids, as a table: how each is made for a recipe, what rounds to it, how its linears are read back."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from r1quant.core.blocklinear import BlockLinear
from r1quant.core.blocktypes import BLOCKS
from r1quant.core.grid import UNIFORM, Grid, ValueGrid
from r1quant.core.qlinear import QLinear, QuantizedLinear
from r1quant.errors import RecipeError


@dataclass(frozen=True)
class GridKind:
    """One kind of grid.

    summary  for people
    make     the grid of a recipe, given the uniform one with its bits, group size, symmetry and scales; raises
             RecipeError if it cannot be had so
    engine   the function that chooses its parameters, as r1quant.engine.grids.rounding.Fit says; or the name of the
             module in r1quant/engine/grids whose `fit` it is, which is imported when the first weight is rounded
    restore  a linear out of what its `arrays` gave
    """

    summary: str
    make: Callable[[Grid], ValueGrid]
    engine: str | Callable[..., object]
    restore: Callable[[Mapping[str, npt.NDArray[Any]]], QuantizedLinear]


def _as_it_is(grid: Grid) -> ValueGrid:
    return grid


GRIDS: dict[str, GridKind] = {
    UNIFORM: GridKind("equal steps, a scale and a zero point for each group", _as_it_is, "uniform", QLinear.restore),
}


def _no_uniform(grid: Grid) -> ValueGrid:
    raise RecipeError("block types of GGUF are not chosen by --grid", "use --format gguf with a --type")


# With those that no --grid chooses.
KINDS: Mapping[str, GridKind] = ChainMap(
    GRIDS, {BLOCKS: GridKind("the block types of GGUF", _no_uniform, "blocks", BlockLinear.restore)}
)


def register_grid(name: str, kind: GridKind) -> None:
    """Adds a kind of grid for the rest of this process. Raises ValueError if the name is taken."""
    if name in KINDS:
        raise ValueError(f"there is a grid {name} already")
    GRIDS[name] = kind

"""What a rounding method is: its options, its result, its signature, and where a name in the table leads."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt
import torch

from r1quant.core.grid import ValueGrid
from r1quant.core.qlinear import QuantizedLinear
from r1quant.engine.stats import Stats
from r1quant.recipe import Recipe
from r1quant.registry import METHODS


@dataclass(frozen=True)
class RoundingOptions:
    """What a recipe says of rounding beside the grid. A method ignores what does not apply to it.

    search       choose the grid's parameters by the error that they leave, not by the range of the weights
    act_order    take columns in order of importance
    damping      share of the mean diagonal that is added to H, the Hessian of the inputs
    row_damping  the same for H_O, the covariance of the gradients at the outputs
    shrinkage    share by which H is shrunk towards its diagonal
    """

    search: bool = True
    act_order: bool = True
    damping: float = 0.01
    row_damping: float = 0.2
    shrinkage: float = 0.0

    @classmethod
    def of(cls, recipe: Recipe) -> RoundingOptions:
        return cls(recipe.scale_search, recipe.act_order, recipe.damping, shrinkage=recipe.shrinkage)


@dataclass(frozen=True, eq=False)
class Solved:
    """A weight [N, K] after rounding, and what was not as usual. What the rounding costs is measured by others.

    qlinear       its N rows
    damping       the share of the mean diagonal that was added to H in the end; None if H was not asked
    rows_nearest  bool [N]: rows for which plain rounding cost less and was taken; None if the method does not compare
    fallback      whether H could not be factored at all, so that every row is rounded to nearest
    """

    qlinear: QuantizedLinear
    damping: float | None = None
    rows_nearest: npt.NDArray[np.bool_] | None = None
    fallback: bool = False


class Quantize(Protocol):
    """The `quantize` of a module of this package."""

    def __call__(self, weight: torch.Tensor, stats: Stats | None, grid: ValueGrid, options: RoundingOptions) -> Solved:
        """Rounds a weight to a grid.

        weight  float32 [N, K], finite, on the device of the statistics; rows of linears that share their inputs may be
                stacked, so rows must not depend on each other but through `stats.outputs`
        stats   of the K inputs; None for a method that is not calibrated
        """


def rounding_by(name: str) -> Quantize:
    """The method of a name in registry.METHODS."""
    engine = METHODS[name].engine
    if isinstance(engine, str):
        engine = import_module(f"r1quant.engine.methods.{engine}").quantize
    return cast(Quantize, engine)

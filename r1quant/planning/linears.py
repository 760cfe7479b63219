"""What a plan is made of: the linears that may be quantized, and what stops it. No weight is read."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from r1quant.arch.tables import Architecture, is_tied
from r1quant.checkpoint.artifact import LinearSpec
from r1quant.checkpoint.safetensors import Checkpoint
from r1quant.core.grid import Grids, ValueGrid
from r1quant.errors import R1QuantError, RecipeError
from r1quant.formats.codec import Encoder
from r1quant.recipe import FLOAT, Recipe

EMBEDDING, HEAD = "embedding", "head"  # the stages of the tables


@dataclass(frozen=True)
class LinearPlan:
    """One linear that may be quantized.

    name    without `.weight`
    shape   (out, in)
    stage   its name: linears of one layer and stage share an input, and runtimes fuse them
    dtype   as it is stored now
    nbytes  that it takes now
    """

    name: str
    shape: tuple[int, int]
    layer: int
    stage: str
    dtype: str
    nbytes: int

    @property
    def weights(self) -> int:
        return math.prod(self.shape)

    def stored(self, grid: ValueGrid | None, codec: Encoder) -> int:
        """The bytes that it will take, with scales, zero points and group maps."""
        if grid is None:
            return self.nbytes
        return sum(spec.nbytes for spec in codec.tensor_specs(self.name, LinearSpec.planned(self.shape, grid)))


@dataclass(frozen=True)
class PlanProblem:
    """Something that stops the run."""

    message: str
    hint: str
    kind: type[R1QuantError] = RecipeError


def linears_of(checkpoint: Checkpoint, arch: Architecture, layers: int) -> tuple[LinearPlan, ...]:
    """The linears of the decoder layers, in the order of computation."""
    found = []
    for layer in range(layers):
        for stage in arch.layer.stages:
            for name in stage.linears:
                full = arch.layer_prefix(layer) + name
                info = checkpoint.tensors.get(f"{full}.weight")
                if info is not None and len(info.shape) == 2:
                    shape = info.shape[0], info.shape[1]
                    found.append(LinearPlan(full, shape, layer, stage.name, info.dtype, info.nbytes))
    return tuple(found)


def tables_of(checkpoint: Checkpoint, arch: Architecture, layers: int) -> tuple[LinearPlan, ...]:
    """The embedding and the head, as if they were linears of a layer after the last; one of them if they are tied."""
    found = []
    for stage, name in ((EMBEDDING, arch.tensors.embedding), (HEAD, arch.tensors.head)):
        info = checkpoint.tensors.get(name)
        if info is not None and len(info.shape) == 2 and not (stage == HEAD and is_tied(checkpoint.config)):
            shape = info.shape[0], info.shape[1]
            found.append(LinearPlan(name.removesuffix(".weight"), shape, layers, stage, info.dtype, info.nbytes))
    return tuple(found)


def table_grids(matrices: Iterable[LinearPlan], recipe: Recipe) -> dict[str, ValueGrid]:
    """The uniform grids of those of the matrices that are tables, and have bits of their own by the recipe."""
    chosen = {matrix.name: recipe.table_bits.get(matrix.stage, FLOAT) for matrix in matrices}
    return {name: replace(recipe.uniform, bits=count) for name, count in chosen.items() if count != FLOAT}


def forms_of(linears: Iterable[LinearPlan], grids: Grids) -> dict[str, LinearSpec]:
    """What each linear that is quantized will be, by name."""
    chosen = ((linear, grids.get(linear.name)) for linear in linears)
    return {linear.name: LinearSpec.planned(linear.shape, grid) for linear, grid in chosen if grid is not None}

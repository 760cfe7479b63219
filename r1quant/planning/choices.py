"""Choices: what a budget may make of a matrix. A number of bits of the uniform grid, or a block type of GGUF.

It says which choices a format holds, what each takes, and at which of them rounding is tried out to predict the others.
No weight is read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from r1quant.checkpoint.artifact import LinearSpec
from r1quant.core.blocktypes import BLOCK_TYPES, SUPER_BLOCK, BlockGrid
from r1quant.core.grid import BITS, ValueGrid
from r1quant.formats.codec import Codec
from r1quant.formats.gguf.mixtures import FALLBACK
from r1quant.formats.table import CODECS
from r1quant.planning import preflight
from r1quant.planning.linears import LinearPlan
from r1quant.recipe import FLOAT, Recipe
from r1quant.registry import METHODS

Choice: TypeAlias = int | str  # bits of the uniform grid, FLOAT for none; or a key of BLOCK_TYPES

MOST_TRIED = 5  # bits: beyond, each more leaves a quarter of the loss (SmolLM2: 0.25, 0.24, 0.25 at 6, 7 and 8)
USUAL_TYPES = ("Q2_K", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
SMALL_TYPES = ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", *USUAL_TYPES)  # if Q2_K everywhere is too large
TRIED_TYPES, TRIED_BLOCKS = ("Q2_K", "Q3_K", "Q4_K"), ("IQ4_NL",)  # of super-blocks, and of blocks of 32 columns
# What each type loses, in shares of what Q4_K does: guided rounding of SmolLM2 and tiny-r1, whose linears differ by a
# tenth, or by a third at 2 bits. Those with code books are from tiny-r1 alone.
LOSS: Mapping[str, float] = {
    "IQ1_S": 70, "IQ1_M": 54, "IQ2_XXS": 27, "IQ2_XS": 19.5, "IQ2_S": 13.5, "Q2_K": 18, "IQ3_XXS": 6.6, "IQ3_S": 3.5,
    "Q3_K": 4.7, "IQ4_XS": 1.12, "IQ4_NL": 1.12, "Q4_0": 1.4, "Q4_K": 1, "Q4_1": 1, "Q5_0": 0.35, "Q5_1": 0.25,
    "Q5_K": 0.25, "Q6_K": 0.064, "Q8_0": 0.005,
}  # fmt: skip


def matrices_of(recipe: Recipe, linears: Sequence[LinearPlan], tables: Sequence[LinearPlan]) -> tuple[LinearPlan, ...]:
    """All that there is something to choose for: embedding and head if there are types to choose from. If no type fits
    their rows, they stay in float."""
    fitting = (table for table in tables if table.shape[1] % min(of.block for of in BLOCK_TYPES.values()) == 0)
    return (*linears, *fitting) if recipe.typed else tuple(linears)


def grid_of(recipe: Recipe, choice: Choice) -> ValueGrid | None:
    """The grid of a choice; None for one that leaves a matrix in float."""
    if isinstance(choice, str):
        return BlockGrid(choice)
    return None if choice == FLOAT else replace(recipe.uniform, bits=choice)


def text(choice: Choice) -> str:
    return choice if isinstance(choice, str) else f"{choice} bits"


def allowed(recipe: Recipe, linears: tuple[LinearPlan, ...]) -> tuple[Choice, ...]:
    """What a budget chooses from: what the recipe names of what the format holds; if it names nothing, of bits those
    that a runtime loads mixed or, if none does, all that the format holds."""
    if recipe.typed:
        return recipe.allowed_types or USUAL_TYPES
    named = recipe.allowed_bits or BITS
    held = tuple(bits for bits in named if any(holds(recipe, linear, bits) for linear in linears))
    loaded = preflight.mixed_bits(recipe.format, recipe.symmetric)
    return held if recipe.allowed_bits or len(loaded) < 2 else tuple(bits for bits in held if bits in loaded)


def holds(recipe: Recipe, matrix: LinearPlan, choice: Choice, codec: Codec | None = None) -> bool:
    """Whether a format, that of the recipe or another one, holds a matrix so."""
    if isinstance(choice, str):
        return _fits(choice, matrix.shape[1])
    grid = grid_of(recipe, choice)
    return grid is None or (codec or CODECS[recipe.format]).problem(LinearSpec.planned(matrix.shape, grid)) is None


def choices_of(recipe: Recipe, matrix: LinearPlan, among: Sequence[Choice]) -> tuple[Choice, ...]:
    """Those that a matrix may have."""
    if recipe.typed:
        return _fitting(among, matrix.shape[1])
    return tuple(choice for choice in among if holds(recipe, matrix, choice))


def stored(recipe: Recipe, matrix: LinearPlan, choice: Choice) -> int:
    """The bytes that a matrix takes."""
    if isinstance(choice, str):
        return matrix.shape[0] * BLOCK_TYPES[choice].row_bytes(matrix.shape[1])
    return matrix.stored(grid_of(recipe, choice), CODECS[recipe.format])


def tried(recipe: Recipe, among: Sequence[Choice], columns: int = SUPER_BLOCK) -> tuple[Choice, ...]:
    """Those at which rounding is tried out to predict all: if that takes long, the few at which each linear loses much
    in its own way."""
    if recipe.typed:
        return tuple(dict.fromkeys(_like(type, columns) for type in _fitting(among, columns)))
    counts = sorted(choice for choice in among if isinstance(choice, int) and choice != FLOAT)
    feedback = METHODS[recipe.method].feedback
    return tuple(b for b in counts if not feedback or b <= max(MOST_TRIED, counts[0]))


def extended(
    losses: Mapping[Choice, float], among: Sequence[Choice], columns: int = SUPER_BLOCK
) -> dict[Choice, float]:
    """The losses of trials, and of all other choices what follows from them."""
    known = dict(losses)
    for type in _fitting(among, columns):
        like = _like(type, columns)
        known.setdefault(type, losses[like] * LOSS[type] / LOSS[like])
    most = max((choice for choice in losses if isinstance(choice, int)), default=FLOAT)
    counts = (choice for choice in among if isinstance(choice, int) and most < choice != FLOAT)
    return known | {choice: losses[most] * 4.0 ** (most - choice) for choice in counts}


def even(matrix: LinearPlan, choice: Choice) -> float:
    """What a choice would lose if all weights mattered alike: an error of half the size costs a quarter."""
    return matrix.weights * (LOSS[choice] / 4**4 if isinstance(choice, str) else 4.0**-choice)


def _fitting(among: Sequence[Choice], columns: int) -> tuple[str, ...]:
    """The types for rows of so many columns. In place of one whose blocks do not fit is the one that llama.cpp falls
    back to."""
    types = [choice for choice in among if isinstance(choice, str)]
    fallen = (type if _fits(type, columns) else FALLBACK.get(type, "IQ4_NL") for type in types)
    return tuple(type for type in dict.fromkeys(fallen) if _fits(type, columns))


def _fits(type: str, columns: int) -> bool:
    return columns % BLOCK_TYPES[type].block == 0


def _like(type: str, columns: int) -> str:
    """The type that is tried out in place of another one: that whose loss is most like its."""
    known = TRIED_BLOCKS if columns % SUPER_BLOCK else TRIED_TYPES
    return min(known, key=lambda other: abs(math.log(LOSS[type] / LOSS[other])))

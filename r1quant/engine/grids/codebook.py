"""GGUF's block types with code books of combinations: scales first, then eight columns at once.

Which combinations there are, the gguf package knows. The kernels see a book as values and codes, and what it says of
signs: magnitudes whose signs are free or an even number of which is negative, or levels that have theirs already. The
ternary books of IQ1, which move up or down by an eighth, are of the last kind: a single one of both if each eight
columns move alone (IQ1_M); two, one of which the scale of a group picks, if 32 columns move together (IQ1_S).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from r1quant.core.blocklinear import BlockLinear
from r1quant.core.blocktypes import BLOCK_TYPES, SUPER_BLOCK, BlockGrid
from r1quant.engine.grids import codebook_kernels as kernels
from r1quant.engine.grids import codebook_scales
from r1quant.engine.grids.rounding import Block, Codes, Floats, RoundedBlock
from r1quant.formats.gguf import codebooks

OCTET = 8
ROUNDS = 4
TRIALS = np.linspace(0.8, 1.3, 11, dtype=np.float32)
SIGNS = {"shift": kernels.NONE, "free": kernels.FREE, "even": kernels.EVEN}


@dataclass(frozen=True, eq=False)
class Entries:
    """A code book as the kernels see it: V books of E entries, of which a group uses one.

    values  float32 [V, width, E]
    codes   uint8 [V, E, width], of the entries if no sign is negative
    signs   NONE, FREE or EVEN
    """

    values: Floats
    codes: Codes
    signs: int


@cache
def entries_of(type: str) -> Entries:
    """The code book of a key of BLOCK_TYPES that has one."""
    of = BLOCK_TYPES[type]
    assert of.book is not None, "a type without combinations"
    levels, digits = np.array(of.levels, np.float32), codebooks.digits(of.book.name)
    if of.book.signs == "shift":
        moved = np.stack([2 * digits, 2 * digits + 1])
        codes = moved if of.book.run > OCTET else moved.reshape(1, -1, of.book.width)
    else:
        codes = digits[None] + np.uint8(len(levels) // 2)
    return Entries(np.ascontiguousarray(levels[codes].swapaxes(1, 2)), codes, SIGNS[of.book.signs])


@dataclass(frozen=True, eq=False)
class CodebookRounding:
    """A Rounding of a weight [N, K] with G groups.

    empty       all but the codes, which have no columns
    scale       float32 [N, G]
    variant     uint8 [N, G], which of the books a group uses
    importance  float32 [K], what an error of each column counts where there is no feedback
    """

    empty: BlockLinear
    scale: Floats
    variant: Codes
    importance: Floats

    run: ClassVar[int] = OCTET

    def nearest(self, weight: Floats) -> Codes:
        codes = np.empty(weight.shape, np.uint8)
        unit = np.eye(OCTET, dtype=np.float32)
        for start in range(0, weight.shape[1], OCTET):
            columns = np.arange(start, start + OCTET)
            part = np.ascontiguousarray(weight[:, columns])
            block = Block(part.copy(), part, unit, self.importance[columns], columns, None)
            codes[:, columns] = self.round_block(block).codes
        return codes

    def round_block(self, block: Block) -> RoundedBlock:
        rows, book = block.weight.shape[0], entries_of(self.empty.type)
        done = RoundedBlock(np.empty(block.weight.shape, np.uint8), np.empty(block.weight.shape, np.float32))
        if block.coupling is None:
            coupled = np.arange(rows + 1), np.ones(rows, np.float32), np.arange(rows)  # each row with itself
        else:
            coupled = block.coupling.edges, block.coupling.flat, block.coupling.starts
        kernels.round_block(
            block.target, block.weight, block.factor, block.pivots, *coupled, self.scale, self.variant,
            block.columns[::OCTET] // self.empty.of.group, book.values, book.codes, len(self.empty.of.levels) - 1,
            book.signs, done.codes, done.error,
        )  # fmt: skip
        return done

    def take(self, rows: npt.NDArray[np.int64]) -> CodebookRounding:
        return CodebookRounding(self.empty.take(rows), self.scale[rows], self.variant[rows], self.importance)

    def linear(self, codes: Codes) -> BlockLinear:
        return BlockLinear(self.empty.type, codes, self.empty.d, self.empty.scales)


def fit(weight: Floats, grid: BlockGrid, importance: Floats | None, search: bool) -> CodebookRounding:
    """As rounding.Fit says, for a type with a code book. Columns must be a multiple of a super-block."""
    of, (rows, columns) = grid.of, weight.shape
    assert of.scales is not None
    book, counted = entries_of(of.name), np.ones(columns, np.float32)
    if importance is not None:
        counted = np.maximum(importance, np.float32(1e-6) * importance.mean()) if importance.any() else counted
    steps = np.arange(of.scales[0], of.scales[1] + 1, dtype=np.float32) * np.float32(of.step) + np.float32(of.base)
    d = np.zeros((rows, columns // SUPER_BLOCK), np.float32)
    scales = np.zeros((rows, columns // of.group), np.int8)
    variant = np.zeros(scales.shape, np.uint8)
    tried = (0.0, TRIALS, ROUNDS) if search else (of.levels[-1], np.ones(1, np.float32), 1)
    for b in range(d.shape[1]):
        inside, groups = slice(b * SUPER_BLOCK, (b + 1) * SUPER_BLOCK), SUPER_BLOCK // of.group
        own = slice(b * groups, (b + 1) * groups)
        norms, order = norms_of(book, counted[inside])
        codebook_scales.choose(
            np.ascontiguousarray(weight[:, inside]), counted[inside], book.values, norms, order, book.signs, steps,
            *tried, d[:, b], scales[:, own], variant[:, own],
        )  # fmt: skip
    empty = BlockLinear(of.name, np.empty((rows, 0), np.uint8), d.astype(np.float16), scales)
    return CodebookRounding(empty, empty.scale, variant, counted)


def norms_of(book: Entries, counted: Floats) -> tuple[Floats, npt.NDArray[np.int32]]:
    """The sums of counted * q^2 of all entries q on all tuples of columns, float32 [V, K / width, E], ascending; and
    which entries these are."""
    norms = np.matmul(counted.reshape(-1, book.values.shape[1]), np.square(book.values))
    order = norms.argsort(axis=2).astype(np.int32)
    return np.take_along_axis(norms, order, 2), order

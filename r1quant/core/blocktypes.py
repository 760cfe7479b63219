"""The block types of GGUF as grids: what one block of columns stores, and which values its weights may take.

A weight is level * S + M. S and M are products of one or two float16 numbers per block and small integers per group, so
that a type is a set of levels, a range of these integers and the sizes of group and block. The levels of the I-quants
below 4 bits are only allowed in combinations of 4 or 8 neighbouring columns, which a code book lists. Layouts in bytes
are not known here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

BLOCKS = "blocks"  # the kind of these grids
SUPER_BLOCK = 256  # columns

# The sixteen levels of IQ4_NL and IQ4_XS (ggml's kvalues_iq4nl).
NONLINEAR = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
TERNARY = (-1.125, -0.875, -0.125, 0.125, 0.875, 1.125)  # -1, 0, 1, each moved down or up by an eighth


def _mirrored(*magnitudes: int) -> tuple[float, ...]:
    return tuple(sorted({sign * float(m) for m in magnitudes for sign in (-1, 1)}))


@dataclass(frozen=True)
class CodeBook:
    """Which combinations of levels neighbouring columns may have.

    name    of the table in the gguf package, which lists magnitudes; for signed levels the levels themselves
    width   how many columns an entry covers
    signs   free: every column has a sign of its own; even: of eight columns an even number is negative; shift: none,
            but eight columns move up or down by an eighth together
    run     columns that must move together
    """

    name: str
    width: Literal[4, 8]
    signs: Literal["free", "even", "shift"]
    run: int = 8


@dataclass(frozen=True)
class BlockType:
    """One type of GGUF.

        weight = levels[code] * (d * (step * scale + base)) - dmin * minimum

    name, number   as ggml has them
    block          columns that are stored together, in `nbytes` bytes; a row must be a whole number of blocks
    group          columns that share a scale
    levels         ascending
    scales         the smallest and the largest integer scale of a group; None if a block is a group, and d its scale
    step, base     how the integer scale counts
    minima         the largest integer minimum of a group; None if there is no minimum. 0 if a block is a group: then
                   the minimum is a float16 number of its own, which is added and may have either sign
    book           which combinations of levels are allowed; None if all are
    """

    name: str
    number: int
    block: int
    nbytes: int
    group: int
    levels: tuple[float, ...]
    scales: tuple[int, int] | None = None
    step: float = 1.0
    base: float = 0.0
    minima: int | None = None
    book: CodeBook | None = None

    @property
    def bits(self) -> int:
        """Of a code, at most 8."""
        return max(2, (len(self.levels) - 1).bit_length())

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / self.block

    @property
    def uniform(self) -> bool:
        """Whether the levels are neighbouring integers."""
        return all(b - a == 1 for a, b in zip(self.levels, self.levels[1:], strict=False))

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row of so many columns, a multiple of the block."""
        return columns // self.block * self.nbytes


def _run(low: int, high: int) -> tuple[float, ...]:
    return tuple(float(level) for level in range(low, high + 1))


_IQ2, _IQ3 = _mirrored(8, 25, 43), _mirrored(4, 12, 20, 28, 36, 44, 52, 62)
BLOCK_TYPES: Mapping[str, BlockType] = {
    one.name: one
    for one in (
        BlockType("Q4_0", 2, 32, 18, 32, _run(-8, 7)),
        BlockType("Q4_1", 3, 32, 20, 32, _run(0, 15), minima=0),
        BlockType("Q5_0", 6, 32, 22, 32, _run(-16, 15)),
        BlockType("Q5_1", 7, 32, 24, 32, _run(0, 31), minima=0),
        BlockType("Q8_0", 8, 32, 34, 32, _run(-128, 127)),
        BlockType("Q2_K", 10, 256, 84, 16, _run(0, 3), (0, 15), minima=15),
        BlockType("Q3_K", 11, 256, 110, 16, _run(-4, 3), (-32, 31)),
        BlockType("Q4_K", 12, 256, 144, 32, _run(0, 15), (0, 63), minima=63),
        BlockType("Q5_K", 13, 256, 176, 32, _run(0, 31), (0, 63), minima=63),
        BlockType("Q6_K", 14, 256, 210, 16, _run(-32, 31), (-128, 127)),
        BlockType("IQ4_NL", 20, 32, 18, 32, tuple(map(float, NONLINEAR))),
        BlockType("IQ4_XS", 23, 256, 136, 32, tuple(map(float, NONLINEAR)), (-32, 31)),
        BlockType("IQ3_S", 21, 256, 110, 32, _mirrored(*range(1, 16, 2)), (0, 15), 2, 1, None,
                  CodeBook("IQ3_S", 4, "free")),
        BlockType("IQ3_XXS", 18, 256, 98, 32, _IQ3, (0, 15), 0.5, 0.25, None, CodeBook("IQ3_XXS", 4, "even")),
        BlockType("IQ2_S", 22, 256, 82, 16, _IQ2, (0, 15), 0.25, 0.125, None, CodeBook("IQ2_S", 8, "free")),
        BlockType("IQ2_XS", 17, 256, 74, 16, _IQ2, (0, 15), 0.25, 0.125, None, CodeBook("IQ2_XS", 8, "even")),
        BlockType("IQ2_XXS", 16, 256, 66, 32, _IQ2, (0, 15), 0.25, 0.125, None, CodeBook("IQ2_XXS", 8, "even")),
        BlockType("IQ1_M", 29, 256, 56, 16, TERNARY, (0, 7), 2, 1, None, CodeBook("IQ1_M", 8, "shift", 8)),
        BlockType("IQ1_S", 19, 256, 50, 32, TERNARY, (0, 7), 2, 1, None, CodeBook("IQ1_S", 8, "shift", 32)),
    )
}  # fmt: skip


# Names of llama.cpp's mixtures, which give the tensors of a model types of their own.
MIXTURES = (
    "Q2_K", "Q2_K_S", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_0", "Q4_1", "Q4_K_S", "Q4_K_M", "Q5_0", "Q5_1", "Q5_K_S",
    "Q5_K_M", "Q6_K", "Q8_0", "IQ4_NL", "IQ4_XS", "IQ3_XXS", "IQ3_XS", "IQ3_S", "IQ3_M", "IQ2_XXS", "IQ2_XS", "IQ2_S",
    "IQ2_M", "IQ1_S", "IQ1_M",
)  # fmt: skip
TYPES = (*MIXTURES, *(name for name in BLOCK_TYPES if name not in MIXTURES))  # what --type takes


@dataclass(frozen=True)
class BlockGrid:
    """A block type as a ValueGrid. type: a key of BLOCK_TYPES."""

    type: str

    kind: ClassVar[str] = BLOCKS

    @property
    def of(self) -> BlockType:
        return BLOCK_TYPES[self.type]

    @property
    def bits(self) -> int:
        return self.of.bits

    @property
    def group_size(self) -> int:
        """The columns of a block, which share its float16 numbers."""
        return self.of.block

    def as_dict(self) -> dict[str, str | int | bool]:
        return {"kind": self.kind, "type": self.type}

"""Grids: which values a quantized weight may take, before any weight is known.

ValueGrid is what every kind of grid says of itself; Grid is the uniform one. Its scales are rounded to the dtype that
ships *before* codes are computed, so nothing moves later. The default `portable` scale has the 8 significant bits of
bfloat16 and lies in the normal range of float16: it is the same number in both, so a runtime that casts scales to the
model's dtype still multiplies by exactly this value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt

BITS = (2, 3, 4, 5, 6, 7, 8)
GROUP_SIZES = (16, 32, 64, 128, -1)
ScaleDtype = Literal["portable", "float16"]
SCALE_DTYPES: tuple[ScaleDtype, ...] = ("portable", "float16")

UNIFORM = "uniform"
SMALLEST_SCALE = 2.0**-14  # the smallest normal float16
LARGEST_SCALE = {"portable": 255 * 2.0**8, "float16": 65504.0}
DROPPED_BITS = {"portable": 16, "float16": 13}  # of a float32's 23-bit fraction


class ValueGrid(Protocol):
    """A set of values with parameters, such as scales, that are chosen for each group of input columns."""

    @property
    def kind(self) -> str:
        """Its name in r1quant.core.grids.GRIDS."""

    @property
    def bits(self) -> int:
        """Of a code, at most 8."""

    @property
    def group_size(self) -> int:
        """How many columns share all their parameters, so that rows must be whole multiples of it; -1 for a row."""

    def as_dict(self) -> dict[str, str | int | bool]:
        """All that decides its values, its kind among it."""


@dataclass(frozen=True)
class Grid:
    """Uniform integer grid over contiguous groups of input columns.

    bits          2 .. 8
    group_size    columns that share one scale and zero point; -1 is the whole row
    symmetric     the zero point is 2**(bits-1) everywhere
    scale_dtype   `portable` (exact in float16 and bfloat16) or `float16`
    zero_min      smallest zero point an asymmetric grid may use (1 if the format stores zero - 1)
    """

    bits: int = 4
    group_size: int = 128
    symmetric: bool = True
    scale_dtype: ScaleDtype = "portable"
    zero_min: int = 0

    kind: ClassVar[str] = UNIFORM

    def as_dict(self) -> dict[str, str | int | bool]:
        return {"kind": self.kind, **asdict(self)}

    @property
    def levels(self) -> int:
        """Number of codes, 2**bits."""
        return 1 << self.bits

    @property
    def midpoint(self) -> int:
        """The zero point of a symmetric grid."""
        return 1 << (self.bits - 1)

    def groups(self, columns: int) -> int:
        """Number of groups in a row of `columns` weights (which must divide)."""
        return 1 if self.group_size == -1 else columns // self.group_size

    def group_of_column(self, columns: int) -> npt.NDArray[np.int32]:
        """int32 [columns]: the group of each input column."""
        size = columns if self.group_size == -1 else self.group_size
        return (np.arange(columns) // size).astype(np.int32)


Grids = Mapping[str, ValueGrid | None]  # of linears by name; None stays in float


def round_scale(scale: npt.NDArray[np.float32], dtype: ScaleDtype) -> npt.NDArray[np.float32]:
    """Scales as they will ship, still held in float32. Sign is kept; magnitude is clamped to the normal range.

    scale: float32, any shape, finite. Rounds half to even, to 8 significant bits for `portable`, 11 for `float16`.
    """
    clamped = np.where(scale < 0, -1.0, 1.0) * np.clip(np.abs(scale), SMALLEST_SCALE, LARGEST_SCALE[dtype])
    drop = np.uint32(DROPPED_BITS[dtype])
    word = clamped.astype(np.float32).view(np.uint32)
    half = (np.uint32(1) << (drop - np.uint32(1))) - np.uint32(1)
    rounded = ((word + half + ((word >> drop) & np.uint32(1))) >> drop) << drop
    shipped: npt.NDArray[np.float32] = rounded.view(np.float32)
    return shipped

"""QLinear: the only form a weight on the uniform grid ever takes between a method and a format.

It knows its equation and how to check itself. It does not know how it was found or how it is stored. QuantizedLinear is
what it has in common with the weights on grids of other kinds, whose integers are their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from r1quant.core import bits as packing
from r1quant.core.grid import UNIFORM


class QuantizedLinear(Protocol):
    """One quantized linear layer of `out` rows and `in` columns, on a grid of any kind."""

    @property
    def kind(self) -> str:
        """That of its grid, a name in r1quant.core.grids.GRIDS."""

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)"""

    def dequantize(self) -> npt.NDArray[np.float32]:
        """The weights, float32 [out, in]: what the integers stand for, and no rounding of it."""

    def rows(self, start: int, stop: int) -> QuantizedLinear:
        """The rows start .. stop as a linear of their own."""

    @staticmethod
    def stack(parts: Sequence[Any]) -> QuantizedLinear:
        """The rows of several linears of this kind on one grid, one after the other; the inverse of `rows`."""

    def validate(self) -> None:
        """Raises ValueError naming the first law of its kind that does not hold."""

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """All that it consists of, by names of its own, as it is kept in a run directory. GridKind.restore is the
        inverse."""


@dataclass(frozen=True, eq=False)
class QLinear:
    """One quantized linear layer of `out` rows and `in` columns.

        w[o, i] = (codes[o, i] - zero[o, group[i]]) * scale[o, group[i]]

    codes   uint8 [out, in], 0 .. 2**bits - 1, one code per byte
    scale   float16 [out, groups], finite, not zero; may be negative. float32 only if a foreign file has scales
            that float16 cannot hold
    zero    uint8 [out, groups], 0 .. 2**bits - 1
    group   int32 [in], the group of each input column
    bits    2 .. 8
    """

    codes: npt.NDArray[np.uint8]
    scale: npt.NDArray[np.float16] | npt.NDArray[np.float32]
    zero: npt.NDArray[np.uint8]
    group: npt.NDArray[np.int32]
    bits: int

    kind: ClassVar[str] = UNIFORM

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)"""
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def groups(self) -> int:
        return int(self.scale.shape[1])

    @property
    def symmetric(self) -> bool:
        """Whether every zero point is 2**(bits-1)."""
        return bool((self.zero == 1 << (self.bits - 1)).all())

    @property
    def contiguous(self) -> bool:
        """Whether the groups are equal runs of neighbouring columns, in order."""
        columns = self.codes.shape[1]
        if columns % self.groups:
            return False
        return bool((self.group == np.arange(columns) // (columns // self.groups)).all())

    def dequantize(self) -> npt.NDArray[np.float32]:
        """float32 [out, in], exact: a code difference of 9 bits times a scale of 11 fits in 24."""
        scale = self.scale.astype(np.float32)
        if self.contiguous:
            out, columns = self.shape
            codes = self.codes.reshape(out, self.groups, -1).astype(np.float32)
            codes -= self.zero.astype(np.float32)[:, :, None]
            codes *= scale[:, :, None]
            return codes.reshape(out, columns)
        difference = self.codes.astype(np.float32)
        difference -= self.zero.astype(np.float32)[:, self.group]
        difference *= scale[:, self.group]
        return difference

    def rows(self, start: int, stop: int) -> QLinear:
        """The rows start .. stop as a QLinear of their own (how a stacked solve is taken apart)."""
        return QLinear(self.codes[start:stop], self.scale[start:stop], self.zero[start:stop], self.group, self.bits)

    @staticmethod
    def stack(parts: Sequence[QLinear]) -> QLinear:
        """The rows of several linears on one grid, one after the other; the inverse of `rows`."""
        return QLinear(
            np.concatenate([part.codes for part in parts]),
            np.concatenate([part.scale for part in parts]),
            np.concatenate([part.zero for part in parts]),
            parts[0].group,
            parts[0].bits,
        )

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Codes are packed to their bits."""
        flat = self.codes.reshape(-1)
        return {
            "codes": packing.pack(np.pad(flat, (0, -flat.size % 32)), self.bits),
            "scale": self.scale,
            "zero": self.zero,
            "group": self.group,
            "shape": np.array([*self.shape, self.bits], np.int64),
        }

    @staticmethod
    def restore(arrays: Mapping[str, npt.NDArray[Any]]) -> QLinear:
        """The inverse of arrays."""
        out, columns, bits = (int(n) for n in arrays["shape"])
        codes = packing.unpack(arrays["codes"], bits)[: out * columns].reshape(out, columns)
        return QLinear(codes, arrays["scale"], arrays["zero"], arrays["group"], bits)

    def validate(self) -> None:
        """Raises ValueError naming the first law that does not hold. Methods and readers are tested against it."""
        out, columns = self.shape
        laws = {
            "bits must be 2..8": 2 <= self.bits <= 8,
            "codes must be uint8": self.codes.dtype == np.uint8,
            "scale must be float16 or float32": self.scale.dtype in (np.float16, np.float32),
            "zero must be uint8": self.zero.dtype == np.uint8,
            "group must be int32": self.group.dtype == np.int32,
            "scale must be [out, groups]": self.scale.shape[0] == out and self.scale.ndim == 2,
            "zero must be shaped like scale": self.zero.shape == self.scale.shape,
            "group must be [in]": self.group.shape == (columns,),
            "group must name a group of scale": bool(((self.group >= 0) & (self.group < self.groups)).all()),
            "codes must fit the bits": int(self.codes.max(initial=0)) < 1 << self.bits,
            "zero must fit the bits": int(self.zero.max(initial=0)) < 1 << self.bits,
            "scale must be finite": bool(np.isfinite(self.scale).all()),
            "scale must not be zero": bool((self.scale != 0).all()),
        }
        for law, holds in laws.items():
            if not holds:
                raise ValueError(law)

"""BlockLinear: a weight on the grid of a GGUF block type, as the integers and float16 numbers that its blocks store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from r1quant.core import bits as packing
from r1quant.core.blocktypes import BLOCK_TYPES, BLOCKS, BlockType

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class BlockLinear:
    """One quantized linear layer of `out` rows and `in` columns; `of` is its BlockType.

        w[o, i] = levels[codes[o, i]] * scale(o, i) + offset(o, i)      in float32, each step rounded

    type     a key of BLOCK_TYPES
    codes    uint8 [out, in], one code per byte
    d        float16 [out, in / block], finite
    scales   int8 [out, in / group], the integer scales; None if a block has d alone
    dmin     float16 [out, in / block], finite; None if the type has no minimum
    minima   uint8 [out, in / group], the integer minima; None if the type has none
    """

    type: str
    codes: npt.NDArray[np.uint8]
    d: npt.NDArray[np.float16]
    scales: npt.NDArray[np.int8] | None = None
    dmin: npt.NDArray[np.float16] | None = None
    minima: npt.NDArray[np.uint8] | None = None

    kind: ClassVar[str] = BLOCKS

    @property
    def of(self) -> BlockType:
        return BLOCK_TYPES[self.type]

    @property
    def bits(self) -> int:
        """Of a code."""
        return self.of.bits

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)"""
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def scale(self) -> Floats:
        """float32 [out, in / group]: what a step between neighbouring levels is worth, exact."""
        d = self.d.astype(np.float32)
        if self.scales is None:
            return d
        counted = self.scales.astype(np.float32) * np.float32(self.of.step) + np.float32(self.of.base)
        return np.repeat(d, self.of.block // self.of.group, axis=1) * counted

    @property
    def offset(self) -> Floats:
        """float32 [out, in / group]: what is added in each group, exact."""
        if self.dmin is None:
            return np.zeros((self.shape[0], self.shape[1] // self.of.group), np.float32)
        dmin = self.dmin.astype(np.float32)
        if self.minima is None:
            return dmin
        return -(np.repeat(dmin, self.of.block // self.of.group, axis=1) * self.minima.astype(np.float32))

    def dequantize(self) -> Floats:
        """float32 [out, in]"""
        out, columns = self.shape
        levels = np.array(self.of.levels, np.float32)
        weight = levels[self.codes].reshape(out, -1, self.of.group)
        weight *= self.scale[:, :, None]
        if self.dmin is not None:
            weight += self.offset[:, :, None]
        return weight.reshape(out, columns)

    def rows(self, start: int, stop: int) -> BlockLinear:
        """The rows start .. stop as a linear of their own."""
        return self.take(slice(start, stop))

    def take(self, rows: slice | npt.NDArray[np.int64]) -> BlockLinear:
        """Some rows, in this order, as a linear of their own."""
        return BlockLinear(
            self.type,
            self.codes[rows],
            self.d[rows],
            None if self.scales is None else self.scales[rows],
            None if self.dmin is None else self.dmin[rows],
            None if self.minima is None else self.minima[rows],
        )

    @staticmethod
    def stack(parts: Sequence[BlockLinear]) -> BlockLinear:
        """The rows of several linears of one type, one after the other; the inverse of `rows`."""
        names = ("scales", "dmin", "minima")
        optional = {name: [getattr(part, name) for part in parts] for name in names}
        return BlockLinear(
            parts[0].type,
            np.concatenate([part.codes for part in parts]),
            np.concatenate([part.d for part in parts]),
            **{name: None if values[0] is None else np.concatenate(values) for name, values in optional.items()},
        )

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Codes are packed to their bits."""
        flat = self.codes.reshape(-1)
        optional = {"scales": self.scales, "dmin": self.dmin, "minima": self.minima}
        return {
            "type": np.frombuffer(self.type.encode(), np.uint8),
            "codes": packing.pack(np.pad(flat, (0, -flat.size % 32)), self.of.bits),
            "d": self.d,
            "shape": np.array(self.shape, np.int64),
            **{name: part for name, part in optional.items() if part is not None},
        }

    @staticmethod
    def restore(arrays: Mapping[str, npt.NDArray[Any]]) -> BlockLinear:
        """The inverse of arrays."""
        type, (out, columns) = arrays["type"].tobytes().decode(), (int(n) for n in arrays["shape"])
        codes = packing.unpack(arrays["codes"], BLOCK_TYPES[type].bits)[: out * columns].reshape(out, columns)
        return BlockLinear(
            type, codes, arrays["d"], arrays.get("scales"), arrays.get("dmin"), arrays.get("minima")
        )  # fmt: skip

    def validate(self) -> None:
        """Raises ValueError naming the first law that does not hold. That combinations of levels are in the type's code
        book is checked by whoever writes blocks."""
        if self.type not in BLOCK_TYPES:
            raise ValueError(f"{self.type} is no block type")
        of, (out, columns) = self.of, self.shape
        blocks, groups = (out, columns // of.block), (out, columns // of.group)
        low, high = of.scales or (0, 0)
        laws = {
            f"columns must be a multiple of {of.block}": columns % of.block == 0,
            "codes must be uint8": self.codes.dtype == np.uint8,
            "codes must name levels": int(self.codes.max(initial=0)) < len(of.levels),
            "d must be float16 [out, blocks]": self.d.dtype == np.float16 and self.d.shape == blocks,
            "d must be finite": bool(np.isfinite(self.d).all()),
            "scales must be int8 [out, groups]": _is(self.scales, np.int8, groups if of.scales else None),
            "scales must be in range": self.scales is None
            or bool(((self.scales >= low) & (self.scales <= high)).all()),
            "dmin must be float16 [out, blocks]": _is(self.dmin, np.float16, None if of.minima is None else blocks),
            "dmin must be finite": self.dmin is None or bool(np.isfinite(self.dmin).all()),
            "minima must be uint8 [out, groups]": _is(self.minima, np.uint8, groups if of.minima else None),
            "minima must be in range": self.minima is None or int(self.minima.max(initial=0)) <= (of.minima or 0),
        }
        for law, holds in laws.items():
            if not holds:
                raise ValueError(law)


def _is(array: npt.NDArray[Any] | None, dtype: type, shape: tuple[int, int] | None) -> bool:
    """Whether an array is what it must be; None is one that must not be there."""
    if array is None or shape is None:
        return array is None and shape is None
    return array.dtype == dtype and array.shape == shape

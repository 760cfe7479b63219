"""The parts of a GGUF block that need no code book: float16 numbers, and integers in planes of bits.

A part puts a field of a BlockLinear with one block a row into the bytes of these blocks, and gets it from there. Which
parts a type has and at which bytes is said in layouts.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from r1quant.core.blocklinear import BlockLinear

Bytes = npt.NDArray[np.uint8]


class Part(Protocol):
    """Some bytes of a block. raw: uint8 [blocks, bytes of a block]; q: a linear of [blocks, columns of a block]."""

    def put(self, q: BlockLinear, raw: Bytes) -> None:
        """Writes what q has. q is valid; raises ValueError if the type cannot hold it all the same."""

    def get(self, raw: Bytes, q: BlockLinear) -> None:
        """Writes into the arrays of q what the blocks have."""


@dataclass(frozen=True)
class Plane:
    """Some bits of every integer of a block, gathered into bytes.

    at    the first of these bytes
    bits  how many bits of an integer: 1, 2, 4 or 8
    low   the lowest of them. The plane with low = 0 must be the first one that is read
    run   integers that lie in neighbouring bytes: byte j of a run has, from its lowest bits on, integer j of this run,
          of the next run and so on, 8 // bits of them
    """

    at: int
    bits: Literal[1, 2, 4, 8]
    low: int = 0
    run: int = 1

    def put(self, values: Bytes, raw: Bytes) -> None:
        """values: uint8 [blocks, integers]."""
        end = self.at + values.shape[1] * self.bits // 8
        if self.bits == 8:
            raw[:, self.at : end] = values
            return
        if self.bits == self.run == 1:
            raw[:, self.at : end] = np.packbits((values >> np.uint8(self.low)) & np.uint8(1), axis=1, bitorder="little")
            return
        parts, mask = self._parts(values)
        word = parts.dtype.type
        packed = (parts[:, :, 0] >> word(self.low)) & mask
        for i in range(1, 8 // self.bits):
            packed |= ((parts[:, :, i] >> word(self.low)) & mask) << word(i * self.bits)
        raw[:, self.at : end] = packed.view(np.uint8).reshape(len(raw), -1)

    def get(self, raw: Bytes, values: Bytes) -> None:
        """values: uint8 [blocks, integers], contiguous; written to if low = 0, else these bits are added."""
        field = raw[:, self.at : self.at + values.shape[1] * self.bits // 8]
        if self.bits == 8:
            values[:] = field
            return
        if self.bits == self.run == 1:
            values |= np.unpackbits(field, axis=1, bitorder="little") << np.uint8(self.low)
            return
        parts, mask = self._parts(values)
        word = parts.dtype.type
        packed = np.ascontiguousarray(field).view(parts.dtype).reshape(parts.shape[0], parts.shape[1], -1)
        for i in range(8 // self.bits):
            bits = (packed >> word(i * self.bits)) & mask
            if self.low:
                parts[:, :, i] |= bits << word(self.low)
            else:
                parts[:, :, i] = bits

    def _parts(self, values: Bytes) -> tuple[npt.NDArray[Any], np.unsignedinteger[Any]]:
        """The integers as words [blocks, runs of bytes, fields of a byte, words of a run], and the mask of a field."""
        size = next(size for size in (8, 4, 1) if self.run % size == 0)
        words = np.ascontiguousarray(values).view(f"<u{size}")
        mask = int.from_bytes(bytes([(1 << self.bits) - 1] * size), "little")
        return words.reshape(len(values), -1, 8 // self.bits, self.run // size), words.dtype.type(mask)


@dataclass(frozen=True)
class Planes:
    """Codes or integer scales. planes: that with low = 0 first; bias: what is added to make them unsigned."""

    field: Literal["codes", "scales", "minima"]
    planes: tuple[Plane, ...]
    bias: int = 0

    def put(self, q: BlockLinear, raw: Bytes) -> None:
        values = getattr(q, self.field).view(np.uint8)
        if self.bias:
            values = values + np.uint8(self.bias)  # modulo 256
        for plane in self.planes:
            plane.put(values, raw)

    def get(self, raw: Bytes, q: BlockLinear) -> None:
        values = getattr(q, self.field).view(np.uint8)
        for plane in self.planes:
            plane.get(raw, values)
        if self.bias:
            values -= np.uint8(self.bias)


@dataclass(frozen=True)
class Half:
    """d or dmin at a byte."""

    field: Literal["d", "dmin"]
    at: int

    def put(self, q: BlockLinear, raw: Bytes) -> None:
        raw[:, self.at : self.at + 2] = np.ascontiguousarray(getattr(q, self.field), "<f2").view(np.uint8)

    def get(self, raw: Bytes, q: BlockLinear) -> None:
        getattr(q, self.field)[:] = np.ascontiguousarray(raw[:, self.at : self.at + 2]).view("<f2")


@dataclass(frozen=True)
class SixBits:
    """Eight scales and eight minima of 6 bits in 12 bytes.

    Bytes 0 .. 3 have the first four scales and bytes 4 .. 7 the first four minima; bytes 8 .. 11 have the low halves of
    the others, scales below and minima above, whose two high bits are the top bits of the first eight bytes.
    """

    at: int

    def put(self, q: BlockLinear, raw: Bytes) -> None:
        assert q.scales is not None and q.minima is not None
        scales, minima, low = q.scales.view(np.uint8), q.minima, np.uint8(15)
        for start, six in ((self.at, scales), (self.at + 4, minima)):
            raw[:, start : start + 4] = six[:, :4] | (six[:, 4:] >> np.uint8(4) << np.uint8(6))
        raw[:, self.at + 8 : self.at + 12] = (scales[:, 4:] & low) | (minima[:, 4:] & low) << np.uint8(4)

    def get(self, raw: Bytes, q: BlockLinear) -> None:
        assert q.scales is not None and q.minima is not None
        halves = raw[:, self.at + 8 : self.at + 12]
        for start, six, low in (
            (self.at, q.scales.view(np.uint8), halves & np.uint8(15)),
            (self.at + 4, q.minima, halves >> np.uint8(4)),
        ):
            head = raw[:, start : start + 4]
            six[:, :4] = head & np.uint8(63)
            six[:, 4:] = low | head >> np.uint8(6) << np.uint8(4)


@dataclass(frozen=True)
class FourBits:
    """Sixteen scales and minima of 4 bits in as many bytes, scales below."""

    at: int

    def put(self, q: BlockLinear, raw: Bytes) -> None:
        assert q.scales is not None and q.minima is not None
        raw[:, self.at : self.at + 16] = q.scales.view(np.uint8) | q.minima << np.uint8(4)

    def get(self, raw: Bytes, q: BlockLinear) -> None:
        assert q.scales is not None and q.minima is not None
        field = raw[:, self.at : self.at + 16]
        q.scales[:] = field & np.uint8(15)
        q.minima[:] = field >> np.uint8(4)


@dataclass(frozen=True)
class SignedBytes:
    """Codes as signed bytes: code - 128."""

    at: int

    def put(self, q: BlockLinear, raw: Bytes) -> None:
        raw[:, self.at :] = q.codes ^ np.uint8(128)

    def get(self, raw: Bytes, q: BlockLinear) -> None:
        q.codes[:] = raw[:, self.at :] ^ np.uint8(128)

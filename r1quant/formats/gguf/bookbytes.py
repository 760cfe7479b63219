"""How each type with a code book puts numbers of entries, signs and scales into the bytes of its blocks.

Of signs that are negative in even number, seven are stored and the eighth follows. Scales and float16 numbers that
share no bytes with the numbers are left to layouts.py. All of them have 256 columns in a block.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from r1quant.core.blocklinear import BlockLinear
from r1quant.formats.gguf.bookparts import ODD, Combinations, Entries
from r1quant.formats.gguf.parts import Bytes, Plane

SEVEN = np.uint8(127)
FOURS = np.array([0, 4, 8, 12], np.uint16)
EIGHT = (np.arange(128, dtype=np.uint8) | ODD[:128] << np.uint8(7)).astype(np.uint8)  # seven signs to eight


def _apart(count: int, numbers: int, high: Plane, signs: int) -> Entries:
    """IQ3_S, IQ2_S: `count` low bytes of the numbers, the bits above in a plane, all the signs.

    numbers, signs: where these bytes begin.
    """

    def write(found: Combinations, q: BlockLinear, raw: Bytes) -> None:
        raw[:, numbers : numbers + count] = found.numbers.astype(np.uint8)
        high.put((found.numbers >> np.uint16(8)).astype(np.uint8), raw)
        raw[:, signs : signs + 32] = found.signs

    def read(raw: Bytes, q: BlockLinear) -> Combinations:
        above = np.zeros((len(raw), count), np.uint8)
        high.get(raw, above)
        low = raw[:, numbers : numbers + count]
        return Combinations(low | above.astype(np.uint16) << np.uint16(8), raw[:, signs : signs + 32])

    return Entries(write, read)


def _write_iq2_xs(found: Combinations, q: BlockLinear, raw: Bytes) -> None:
    """16 bits for 8 columns: 9 of the number, seven signs."""
    raw[:, 2:66] = _bytes(found.numbers | (found.signs & SEVEN).astype(np.uint16) << np.uint16(9))


def _read_iq2_xs(raw: Bytes, q: BlockLinear) -> Combinations:
    words = _words(raw[:, 2:66], 2)
    return Combinations(words & np.uint16(511), EIGHT[words >> np.uint16(9)])


def _write_iq2_xxs(found: Combinations, q: BlockLinear, raw: Bytes) -> None:
    """For 32 columns four numbers, then their signs and the scale."""
    numbers = found.numbers.astype(np.uint8).reshape(-1, 8, 4)
    raw[:, 2:66] = np.stack([numbers, _signs_and_scales(found, q)], axis=2).reshape(-1, 64)


def _read_iq2_xxs(raw: Bytes, q: BlockLinear) -> Combinations:
    numbers, packed = np.moveaxis(raw[:, 2:66].reshape(-1, 8, 2, 4), 2, 0)
    return _unpacked(numbers.reshape(-1, 32), packed.reshape(-1, 32), q)


def _write_iq3_xxs(found: Combinations, q: BlockLinear, raw: Bytes) -> None:
    """All the numbers, then for 32 columns their signs and the scale."""
    raw[:, 2:66] = found.numbers.astype(np.uint8)
    raw[:, 66:98] = _signs_and_scales(found, q).reshape(-1, 32)


def _read_iq3_xxs(raw: Bytes, q: BlockLinear) -> Combinations:
    return _unpacked(raw[:, 2:66], raw[:, 66:98], q)


def _signs_and_scales(found: Combinations, q: BlockLinear) -> Bytes:
    """uint8 [blocks, 8, 4]: for 32 columns 32 bits, four times seven signs and above them the scale."""
    assert q.scales is not None
    words = q.scales.astype(np.uint32) << np.uint32(28)
    for k in range(4):
        words |= (found.signs[:, k::4] & SEVEN).astype(np.uint32) << np.uint32(7 * k)
    return _bytes(words).reshape(-1, 8, 4)


def _unpacked(numbers: Bytes, packed: Bytes, q: BlockLinear) -> Combinations:
    """packed: uint8 [blocks, 32]."""
    assert q.scales is not None
    words = _words(packed, 4)
    q.scales[:] = words >> np.uint32(28)
    signs = np.empty((len(words), 32), np.uint8)
    for k in range(4):
        signs[:, k::4] = EIGHT[words >> np.uint32(7 * k) & np.uint32(127)]
    return Combinations(numbers.astype(np.uint16), signs)


def _write_iq1_s(found: Combinations, q: BlockLinear, raw: Bytes) -> None:
    """Low bytes of the numbers; for 32 columns 16 bits: four times three above these, the scale, whether down."""
    assert q.scales is not None
    raw[:, 2:34] = found.numbers.astype(np.uint8)
    words = q.scales.astype(np.uint16) << np.uint16(12) | found.signs[:, ::4].astype(np.uint16) << np.uint16(15)
    for k in range(4):
        words |= found.numbers[:, k::4] >> np.uint16(8) << np.uint16(3 * k)
    raw[:, 34:50] = _bytes(words)


def _read_iq1_s(raw: Bytes, q: BlockLinear) -> Combinations:
    assert q.scales is not None
    words, numbers = _words(raw[:, 34:50], 2), raw[:, 2:34].astype(np.uint16)
    q.scales[:] = words >> np.uint16(12) & np.uint16(7)
    for k in range(4):
        numbers[:, k::4] |= (words >> np.uint16(3 * k) & np.uint16(7)) << np.uint16(8)
    return Combinations(numbers, np.repeat((words >> np.uint16(15)).astype(np.uint8), 4, axis=1))


def _write_iq1_m(found: Combinations, q: BlockLinear, raw: Bytes) -> None:
    """Low bytes of the numbers; for 8 columns 4 bits: three above these, whether down; four words of scales and d.

    A word has four scales of three bits, and above them 4 bits of d, the lowest in the first word.
    """
    assert q.scales is not None
    raw[:, :32] = found.numbers.astype(np.uint8)
    NIBBLES.put((found.numbers >> np.uint16(8)).astype(np.uint8) | found.signs << np.uint8(3), raw)
    words = np.ascontiguousarray(q.d, "<f2").view("<u2") >> FOURS << np.uint16(12)
    for k in range(4):
        words |= q.scales[:, k::4].astype(np.uint16) << np.uint16(3 * k)
    raw[:, 48:56] = _bytes(words)


def _read_iq1_m(raw: Bytes, q: BlockLinear) -> Combinations:
    assert q.scales is not None
    words = _words(raw[:, 48:56], 2)
    for k in range(4):
        q.scales[:, k::4] = words >> np.uint16(3 * k) & np.uint16(7)
    top = words >> np.uint16(12) << FOURS
    q.d[:] = np.bitwise_or.reduce(top, axis=1, keepdims=True).view(np.float16)
    above = np.empty((len(raw), 32), np.uint8)
    NIBBLES.get(raw, above)
    numbers = raw[:, :32] | (above & np.uint8(7)).astype(np.uint16) << np.uint16(8)
    return Combinations(numbers, above >> np.uint8(3))


NIBBLES = Plane(32, 4)  # of IQ1_M


def _bytes(words: npt.NDArray[Any]) -> Bytes:
    """[blocks, words] as [blocks, bytes], the lowest byte first."""
    return words.astype(words.dtype.newbyteorder("<"), copy=False).view(np.uint8)


def _words(raw: Bytes, size: int) -> npt.NDArray[Any]:
    """The inverse."""
    return np.ascontiguousarray(raw).view(f"<u{size}").astype(f"u{size}", copy=False)


IQ3_S = _apart(64, 2, Plane(66, 1), 74)
IQ2_S = _apart(32, 2, Plane(66, 2), 34)
IQ3_XXS = Entries(_write_iq3_xxs, _read_iq3_xxs)
IQ2_XS = Entries(_write_iq2_xs, _read_iq2_xs)
IQ2_XXS = Entries(_write_iq2_xxs, _read_iq2_xxs)
IQ1_M = Entries(_write_iq1_m, _read_iq1_m)
IQ1_S = Entries(_write_iq1_s, _read_iq1_s)

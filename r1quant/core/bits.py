"""Packs and unpacks n-bit integers into 32-bit words: the only bit-twiddling in the project.

The stream is dense and little-endian: value k occupies bits b*k .. b*k + b - 1 of its row, whatever the word
borders. For 2, 4 and 8 bits that is the usual 32 // b values a word; for 3 bits, 32 values in three words.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def values_per_block(bits: int) -> int:
    """The smallest count of values that fills whole words: a packed axis must be a multiple of it."""
    return 32 // bits if 32 % bits == 0 else 32


def pack(values: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.int32]:
    """uint8 [..., n] below 2**bits to int32 [..., n * bits / 32]. n must be a multiple of values_per_block(bits)."""
    *lead, n = values.shape
    if n % values_per_block(bits):
        raise ValueError(f"{n} values of {bits} bits do not fill whole 32-bit words")
    if 8 % bits == 0:
        per_byte = 8 // bits
        parts = values.reshape(*lead, n // per_byte, per_byte)
        packed = parts[..., 0].copy()
        for i in range(1, per_byte):
            packed |= parts[..., i] << np.uint8(i * bits)
    else:
        stream = np.unpackbits(values.reshape(*lead, n, 1), axis=-1, count=bits, bitorder="little")
        packed = np.packbits(stream.reshape(*lead, n * bits), axis=-1, bitorder="little")
    return np.ascontiguousarray(packed).view("<i4")


def unpack(words: npt.NDArray[np.int32], bits: int) -> npt.NDArray[np.uint8]:
    """int32 [..., m] to uint8 [..., m * 32 / bits]; the inverse of pack."""
    *lead, m = words.shape
    stream = np.ascontiguousarray(words.astype("<i4", copy=False)).view(np.uint8)
    n = m * 32 // bits
    if 8 % bits == 0:
        mask = np.uint8((1 << bits) - 1)
        values = np.empty((*stream.shape, 8 // bits), np.uint8)
        for i in range(8 // bits):
            np.bitwise_and(stream >> np.uint8(i * bits), mask, out=values[..., i])
        return values.reshape(*lead, n)
    flat = np.unpackbits(stream, axis=-1, bitorder="little")[..., : n * bits]
    return np.packbits(flat.reshape(*lead, n, bits), axis=-1, bitorder="little").reshape(*lead, n)

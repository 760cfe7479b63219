"""The parts of a GGUF block of a type with a code book: which entry neighbouring columns have, and which signs.

The codes of a BlockLinear name the level of each column. What blocks store are the numbers of entries, one for every 4
or 8 columns, and a byte of signs for every 8. How they share bytes with the scales is said in bookbytes.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from r1quant.core.blocklinear import BlockLinear
from r1quant.core.blocktypes import BLOCK_TYPES, CodeBook
from r1quant.formats.gguf import codebooks
from r1quant.formats.gguf.parts import Bytes

Numbers = npt.NDArray[np.uint16]
Words = npt.NDArray[np.uint64]

ONES = np.uint64(0x0101010101010101)
GATHER = np.uint64(0x0102040810204080)  # moves the lowest bit of 8 bytes into the highest byte, first byte lowest
ODD = np.array([number.bit_count() & 1 for number in range(256)], np.uint8)


@dataclass(frozen=True)
class Combinations:
    """What blocks store of their columns.

    numbers  uint16 [blocks, columns / width], below the entries of the book
    signs    uint8 [blocks, columns / 8]. Bit j says that column j of these is negative; if the book has no signs, 1
             that they are moved down by an eighth, 0 that they are moved up
    """

    numbers: Numbers
    signs: Bytes


@dataclass(frozen=True)
class Entries:
    """Codes and whatever shares bytes with them, as a Part.

    write  puts combinations into the bytes of blocks, with what else of the linear lies between them
    read   the inverse: gives the combinations and writes the rest into the linear
    """

    write: Callable[[Combinations, BlockLinear, Bytes], None]
    read: Callable[[Bytes, BlockLinear], Combinations]

    def put(self, q: BlockLinear, raw: Bytes) -> None:
        self.write(combinations(q), q, raw)

    def get(self, raw: Bytes, q: BlockLinear) -> None:
        fill_codes(self.read(raw, q), q)


def combinations(q: BlockLinear) -> Combinations:
    """The entries and signs of codes. Raises ValueError if the type does not allow their combinations."""
    book = _book(q.type)
    words = np.ascontiguousarray(q.codes).view("<u8")
    if book.signs == "shift":
        down = ~words & ONES
        digits = words >> np.uint64(1) & ONES * np.uint64(3)
        signs = (down & np.uint64(1)).astype(np.uint8)
        runs = signs.reshape(len(words), -1, book.run // 8)
        if bool(((down != 0) & (down != ONES)).any()) or bool((runs != runs[..., :1]).any()):
            raise ValueError(f"{q.type} moves {book.run} columns up or down together")
    else:
        half = len(q.of.levels) // 2
        negative = ~(words + ONES * np.uint64(128 - half)) >> np.uint64(7) & ONES
        digits = _mirrored(words, negative, half) - ONES * np.uint64(half)
        signs = (negative * GATHER >> np.uint64(56)).astype(np.uint8)
        if book.signs == "even" and bool(ODD[signs].any()):
            raise ValueError(f"{q.type} needs an even number of negative weights in each 8 columns")
    columns = digits.view(np.uint8).reshape(len(words), -1, book.width)
    numbers = codebooks.numbers(book.name)[codebooks.keys(columns, codebooks.digit_bits(book.name))]
    if bool((numbers < 0).any()):
        raise ValueError(
            f"{book.width} neighbouring columns have levels that are no entry of the code book of {q.type}"
        )
    return Combinations(numbers.view(np.uint16), signs)


def fill_codes(found: Combinations, q: BlockLinear) -> None:
    """The inverse: writes the codes of q."""
    book = _book(q.type)
    words = np.take(_codes(q.type), found.numbers).view("<u8")
    target = q.codes.view("<u8")
    if book.signs == "shift":
        np.add(words, ONES * (np.uint64(1) - found.signs), out=target)
        return
    target[:] = _mirrored(words, _spread()[found.signs], len(q.of.levels) // 2)


def _book(type: str) -> CodeBook:
    book = BLOCK_TYPES[type].book
    assert book is not None
    return book


def _mirrored(words: Words, negative: Words, half: int) -> Words:
    """2 * half - 1 - code for the bytes of `words` for which `negative` has a one; half is 3 or 8."""
    ones = np.uint64((1 << (2 * half - 1).bit_length()) - 1)  # ones - code is code ^ ones
    mirrored = words ^ negative * ones
    excess = ones - np.uint64(2 * half - 1)
    return mirrored - negative * excess if excess else mirrored


@cache
def _spread() -> Words:
    """uint64 [256]: bit j of the index as byte j."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return bits.view("<u8")[:, 0]


@cache
def _codes(type: str) -> npt.NDArray[Any]:
    """A word for each entry: its codes without signs, or moved down."""
    book = _book(type)
    digits = codebooks.digits(book.name)
    half = len(BLOCK_TYPES[type].levels) // 2
    codes = digits * np.uint8(2) if book.signs == "shift" else digits + np.uint8(half)
    return codes.view(f"<u{book.width}")[:, 0]

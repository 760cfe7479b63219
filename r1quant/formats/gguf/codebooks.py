"""The code books of the I-quants below 4 bits: which combinations neighbouring columns may have.

The tables are those that the gguf package decodes with, taken from it when one is first needed. They know magnitudes
(or, of IQ1, the levels before the shift by an eighth), not signs, scales or bytes.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

Entries = npt.NDArray[np.float32]


@cache
def book(name: str) -> Entries:
    """float32 [entries, width], read-only: what each entry stands for, in the order of their numbers.

    name: as a CodeBook of core/blocktypes.py has it. Raises KeyError if there is no such table.
    """
    from gguf import quants

    table = getattr(quants, name, None)
    if table is None or getattr(table, "grid_hex", None) is None:
        raise KeyError(f"{name} is no code book")
    table.init_grid()
    entries: Entries = np.array(table.grid, np.float32).reshape(table.grid_shape)
    entries.setflags(write=False)
    return entries


@cache
def magnitudes(name: str) -> npt.NDArray[np.float32]:
    """float32 [2 to 8], ascending: the different numbers in a code book."""
    found: npt.NDArray[np.float32] = np.unique(book(name))
    return found


@cache
def digits(name: str) -> npt.NDArray[np.uint8]:
    """uint8 [entries, width], read-only: each entry as indices into magnitudes."""
    found = np.searchsorted(magnitudes(name), book(name)).astype(np.uint8)
    found.setflags(write=False)
    return found


@cache
def digit_bits(name: str) -> int:
    """How many bits a digit takes in a key: 2 or 3."""
    return (len(magnitudes(name)) - 1).bit_length()


@cache
def numbers(name: str) -> npt.NDArray[np.int16]:
    """int16 [2 ** (width * digit_bits)], read-only: the number of the entry with a key, -1 if there is none.

    The key of a combination has the digit of column j in the bits from j * digit_bits on.
    """
    bits, columns = digit_bits(name), digits(name)
    found = np.full(1 << (columns.shape[1] * bits), -1, np.int16)
    found[keys(columns, bits)] = np.arange(len(columns))
    found.setflags(write=False)
    return found


def keys(columns: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint16]:
    """uint16 [...]: the keys of combinations of digits, uint8 [..., 4 or 8] and below 2 ** bits; bits is 2 or 3.

    Four digits of 2 or 3 bits, or eight of 2.
    """
    width = columns.shape[-1]
    words = np.ascontiguousarray(columns).view(f"<u{width}")[..., 0]
    gathered, size = words, bits
    for step in range(width.bit_length() - 1):
        # Neighbours of `size` bits, each at the start of a field of 8 << step bits, become one of twice the size.
        field = 8 << step
        mask = sum(((1 << 2 * size) - 1) << start for start in range(0, 8 * width, 2 * field))
        gathered = (gathered | (gathered >> words.dtype.type(field - size))) & words.dtype.type(mask)
        size *= 2
    return gathered.astype(np.uint16)

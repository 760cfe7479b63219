"""Linears of the block types, and bytes of blocks, over all that a type allows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from r1quant.core.blocklinear import BlockLinear
from r1quant.core.blocktypes import BLOCK_TYPES, BlockType
from r1quant.formats.gguf import codebooks

Draw = Callable[[int, tuple[int, ...]], np.ndarray]  # integers from 0 to below n, of a shape

# The byte that has the highest bits of a float16 number, if not byte 1 only.
HIGH_BYTES = {
    "Q4_1": (1, 3), "Q5_1": (1, 3), "Q2_K": (81, 83), "Q3_K": (109,), "Q4_K": (1, 3), "Q5_K": (1, 3), "Q6_K": (209,),
    "IQ1_M": (55,),
}  # fmt: skip


def at_random(seed: int) -> Draw:
    rng = np.random.default_rng(seed)
    return lambda n, shape: rng.integers(0, n, shape)


def in_turn(n: int, shape: tuple[int, ...]) -> np.ndarray:
    """The same integers every time."""
    counted = np.arange(300, 300 + int(np.prod(shape)))
    return ((counted * 37 + counted // 5) % n).reshape(shape)


def linear_of(type: str, out: int, blocks: int, draw: Draw) -> BlockLinear:
    """A valid linear: every level, integer and float16 number that is finite can come."""
    of = BLOCK_TYPES[type]
    columns = blocks * of.block
    groups = (out, columns // of.group)

    def halves() -> np.ndarray:
        bits = draw(0x7C00, (out, blocks)) | draw(2, (out, blocks)) << 15
        return np.ascontiguousarray(bits, np.uint16).view(np.float16)

    low, high = of.scales or (0, 0)
    return BlockLinear(
        type,
        draw(len(of.levels), (out, columns)).astype(np.uint8) if of.book is None else _by_book(of, out, columns, draw),
        halves(),
        (low + draw(high - low + 1, groups)).astype(np.int8) if of.scales else None,
        None if of.minima is None else halves(),
        draw(of.minima + 1, groups).astype(np.uint8) if of.minima else None,
    )


def _by_book(of: BlockType, out: int, columns: int, draw: Draw) -> np.ndarray:
    """Codes from entries and signs, by comparison of levels."""
    assert of.book is not None
    entries = codebooks.book(of.book.name)
    values: np.ndarray = entries[draw(len(entries), (out, columns // of.book.width))].reshape(out, columns)
    if of.book.signs == "shift":
        values = values + np.repeat(draw(2, (out, columns // of.book.run)), of.book.run, axis=1) / 4 - 0.125
    else:
        negative = draw(2, (out, columns // 8, 8))
        if of.book.signs == "even":
            negative[..., 7] = negative[..., :7].sum(-1) % 2
        values = values * (1 - 2 * negative.reshape(out, columns))
    codes = np.searchsorted(of.levels, values)
    assert np.array_equal(np.array(of.levels)[codes], values)
    return codes.astype(np.uint8)


def raw_of(type: str, out: int, blocks: int, draw: Draw) -> np.ndarray:
    """uint8 [out, row bytes]: any bytes whose float16 numbers are finite."""
    of = BLOCK_TYPES[type]
    raw = draw(256, (out, blocks, of.nbytes)).astype(np.uint8)
    for at in HIGH_BYTES.get(type, (1,)):
        raw[..., at] &= np.uint8(0xBF)  # no exponent has all its bits then
    return raw.reshape(out, -1)


def same(a: BlockLinear, b: BlockLinear) -> bool:
    """Field by field, bit for bit."""
    fields = ("codes", "d", "scales", "dmin", "minima")
    return a.type == b.type and all(_bytes(a, name) == _bytes(b, name) for name in fields)


def _bytes(q: BlockLinear, name: str) -> object:
    array = getattr(q, name)
    return None if array is None else (array.dtype, array.shape, array.tobytes())

"""ggml's 32-weight blocks out of quantized linears, and back. Nothing is rounded here.

    Q4_0  18 bytes  f16 d, 16 bytes of nibbles                       d * (q - 8)
    Q4_1  20 bytes  f16 d, f16 m, 16 bytes of nibbles                d * q + m
    Q5_0  22 bytes  f16 d, 4 bytes with every fifth bit, nibbles     d * (q - 16)
    Q8_0  34 bytes  f16 d, 32 signed bytes                           d * q

Byte j of the nibbles holds weight j below and weight j + 16 above. A group of the linear covers several blocks, which
repeat its scale. What comes back has a group of 32 columns and the zero point of the type; code - zero point, scale
and so the weights are those that went in. It does not know files or names.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from r1quant.checkpoint.artifact import LinearSpec
from r1quant.core.qlinear import QLinear
from r1quant.errors import RecipeError
from r1quant.formats.gguf.options import BLOCK, RANGES, problem

Bytes = npt.NDArray[np.uint8]

HEADS = {"q4_0": 2, "q4_1": 4, "q5_0": 6, "q8_0": 2}  # bytes before the nibbles or codes
BLOCK_BYTES = {"q4_0": 18, "q4_1": 20, "q5_0": 22, "q8_0": 34}
BITS = {"q4_0": 4, "q4_1": 4, "q5_0": 5, "q8_0": 8}
PIECE = 1 << 20  # weights worked on at a time, so that they stay in the processor's cache
SMALLEST_SCALE = np.float16(2.0**-14)
LOW_BITS = np.uint64(0x0101010101010101)
GATHER = np.uint64(0x0102040810204080)  # moves the lowest bit of 8 bytes into the highest byte, first byte lowest
SPREAD = np.uint64(0x8040201008040201)
CONTINUE = "let the type be chosen (auto)"


def row_bytes(kind: str, columns: int) -> int:
    """Bytes of a row of `columns` weights."""
    return columns // BLOCK * BLOCK_BYTES[kind]


def encode(q: QLinear, kind: str) -> Bytes:
    """The blocks of a linear, uint8 [out, row bytes]. Raises RecipeError if the type cannot hold it exactly."""
    reason = problem(LinearSpec.of(q), kind) if kind != "q4_1" else problem(LinearSpec.of(q), "q8_0")
    if reason:
        raise RecipeError(reason, CONTINUE)
    out, columns = q.shape
    offsets = _offsets(q) if kind == "q4_1" else None
    blocks = np.empty((out, columns // BLOCK, BLOCK_BYTES[kind]), np.uint8)
    step = max(1, PIECE // columns)
    for start in range(0, out, step):
        rows = slice(start, min(start + step, out))
        _encode_rows(q, rows, kind, offsets, blocks[rows])
    return blocks.reshape(out, -1)


def _encode_rows(q: QLinear, rows: slice, kind: str, offsets: npt.NDArray[np.float16] | None, target: Bytes) -> None:
    """target: uint8 [rows, blocks, block bytes]."""
    per_group = target.shape[1] // q.groups
    target[..., :2] = _halves(np.repeat(q.scale[rows].astype(np.float16), per_group, axis=1))
    codes = q.codes[rows]
    if offsets is not None:
        target[..., 2:4] = _halves(np.repeat(offsets[rows], per_group, axis=1))
    else:
        shift = np.uint8(-RANGES[kind][0] % 256) - q.zero[rows]  # modulo 256, as the addition below
        if shift.any():
            codes = (codes.reshape(len(codes), q.groups, -1) + shift[:, :, None]).reshape(codes.shape)
    words = np.ascontiguousarray(codes).reshape(*target.shape[:2], BLOCK).view(np.uint64)
    if kind == "q8_0":
        target[..., 2:] = (words ^ (LOW_BITS << np.uint64(7))).view(np.uint8)
        return
    if kind == "q5_0":
        fifth = ((words >> np.uint64(4)) & LOW_BITS) * GATHER
        target[..., 2:6] = (fifth >> np.uint64(56)).astype(np.uint8)
        words = words & (LOW_BITS * np.uint64(15))
    target[..., HEADS[kind] :] = (words[..., :2] | (words[..., 2:] << np.uint64(4))).view(np.uint8)


def _offsets(q: QLinear) -> npt.NDArray[np.float16]:
    """-scale * zero as float16. Raises RecipeError if one of them is not exact, or the codes do not fit."""
    wide = q.scale.astype(np.float32) * -q.zero.astype(np.float32)
    with np.errstate(over="ignore"):
        halves = wide.astype(np.float16)
    # A negative scale would give -0.0 for weights of 0.0.
    if q.bits > 4 or bool((q.scale < 0).any()) or not bool((halves.astype(np.float32) == wide).all()):
        raise RecipeError("the offsets of Q4_1 cannot hold scale * zero point exactly", "take q5_0 or auto")
    return halves


def _halves(values: npt.NDArray[np.float16]) -> Bytes:
    """[..., 2] bytes."""
    return np.ascontiguousarray(values)[..., None].view(np.uint8)


def decode(raw: Bytes, kind: str) -> QLinear:
    """The linear that blocks [out, row bytes] are. A block whose scale is zero is all zeros.

    Raises ValueError if a scale is not finite, or the offset of a Q4_1 block is no whole multiple of its scale.
    """
    out, bytes_in_row = raw.shape
    blocks = raw.reshape(out, bytes_in_row // BLOCK_BYTES[kind], BLOCK_BYTES[kind])
    columns = blocks.shape[1] * BLOCK
    codes = np.empty((out, columns), np.uint8)
    scale = np.ascontiguousarray(blocks[..., :2]).view(np.float16)[..., 0]
    if not bool(np.isfinite(scale).all()):
        raise ValueError("a scale is not finite")
    if kind == "q4_1":
        offset = np.ascontiguousarray(blocks[..., 2:4]).view(np.float16)[..., 0]
        zero = zeros_of(scale, offset)
        if zero is None:
            raise ValueError("the offset of a block is not a whole multiple of its scale")
    else:
        zero = np.full(scale.shape, -RANGES[kind][0], np.uint8)
    step = max(1, PIECE // columns)
    for start in range(0, out, step):
        piece = blocks[start : start + step]
        codes[start : start + step] = _codes(piece, kind).reshape(len(piece), columns)
    empty = scale == 0
    if empty.any():
        spread = np.repeat(empty, BLOCK, axis=1)
        codes[spread] = np.repeat(zero, BLOCK, axis=1)[spread]
        scale = np.where(empty, SMALLEST_SCALE, scale)
    return QLinear(codes, scale, zero, (np.arange(columns) // BLOCK).astype(np.int32), BITS[kind])


def _codes(blocks: Bytes, kind: str) -> npt.NDArray[Any]:
    """uint8 [rows, blocks, 32]"""
    body = np.ascontiguousarray(blocks[..., HEADS[kind] :])
    if kind == "q8_0":
        return body ^ np.uint8(0x80)
    words = body.view(np.uint64)
    low = LOW_BITS * np.uint64(15)
    codes = np.concatenate([words & low, (words >> np.uint64(4)) & low], axis=-1)
    if kind == "q5_0":
        fifth = blocks[..., 2:6].astype(np.uint64) * LOW_BITS & SPREAD
        codes |= ((fifth + (LOW_BITS * np.uint64(0x7F))) >> np.uint64(3)) & (LOW_BITS << np.uint64(4))
    return codes.view(np.uint8)


def zeros_of(scale: npt.NDArray[np.float16], offset: npt.NDArray[np.float16]) -> npt.NDArray[np.uint8] | None:
    """The integer zero points 0..15 behind the offsets of Q4_1; None if one of them is not an integer.

    Both arrays have one shape. If a scale is zero, its offset must be zero, too.
    """
    wide, by = scale.astype(np.float32), -offset.astype(np.float32)
    empty = wide == 0
    with np.errstate(all="ignore"):
        guess = np.where(empty, 0.0, np.rint(by / np.where(empty, 1.0, wide)))
        fits = (guess >= 0) & (guess <= 15) & (guess * wide == by)
    return guess.astype(np.uint8) if bool(fits.all()) else None

"""Quantized linears of every kind, drawn at random: what a method may make, and what somebody else's file may hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from r1quant.core.qlinear import QLinear

ALL_BITS = (2, 3, 4, 5, 6, 7, 8)
HALVES = ("bfloat16", "float16", "subnormal")
SCALES = ("bfloat16", "bfloat16", "float16", "float16", "subnormal", "float32", "large")
ZEROS = ("midpoint", "midpoint", "zero", "one", "largest", "any", "any but zero")


@st.composite
def linears(
    draw: st.DrawFn, bits: Sequence[int] = ALL_BITS, scales: Sequence[str] = SCALES, odd: bool = True
) -> QLinear:
    """Half of them of shapes that every format packs, and half, unless odd is False, of any shape at all."""
    chosen = draw(st.sampled_from(bits))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    size = draw(st.sampled_from([16, 32, 64, 128, -1]))
    if not odd or draw(st.booleans()):
        out, columns = 32 * draw(st.integers(1, 2)), 64 * draw(st.integers(1, 3))
        columns *= 2 if size == 128 else 1
    else:
        out = draw(st.integers(1, 70))
        columns = draw(st.integers(1, 150)) if size == -1 else size * draw(st.integers(1, 4)) - draw(st.integers(0, 1))
    group = (np.arange(columns) // (columns if size == -1 else size)).astype(np.int32)
    if draw(st.integers(0, 3)) == 0:
        group = rng.permutation(group)
    shape = (out, int(group.max()) + 1)
    return QLinear(
        codes=rng.integers(0, 2**chosen, (out, columns), dtype=np.uint8),
        scale=scale_of(draw(st.sampled_from(scales)), shape, rng),
        zero=zero_of(draw(st.sampled_from(ZEROS)), shape, chosen, rng),
        group=group,
        bits=chosen,
    )


def scale_of(kind: str, shape: tuple[int, int], rng: np.random.Generator) -> npt.NDArray[Any]:
    """Scales of either sign; float16 if they fit it.

    bfloat16   8 significant bits in the normal range of float16
    float16    11 significant bits in that range
    subnormal  below that range, and still exact in float16
    float32    more bits than float16 has
    large      8 significant bits, beyond what float16 reaches
    """
    sign = rng.choice([-1.0, 1.0], shape)
    if kind == "subnormal":
        return (sign * rng.integers(1, 1024, shape) * 2.0**-24).astype(np.float16)
    digits = {"bfloat16": 8, "float16": 11, "float32": 24, "large": 8}[kind]
    low, high = (17, 30) if kind == "large" else (-14, 8)
    fraction = rng.integers(2 ** (digits - 1), 2**digits, shape) | (kind == "float32")  # odd: all 24 bits are needed
    values = sign * fraction * 2.0 ** (1 - digits) * 2.0 ** rng.integers(low, high, shape)
    result: npt.NDArray[Any] = values.astype(np.float32 if kind in ("float32", "large") else np.float16)
    return result


def zero_of(kind: str, shape: tuple[int, int], bits: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    if kind.startswith("any"):
        return rng.integers(0 if kind == "any" else 1, 2**bits, shape, dtype=np.uint8)
    value = {"midpoint": 2 ** (bits - 1), "zero": 0, "one": 1, "largest": 2**bits - 1}[kind]
    return np.full(shape, value, np.uint8)


def same(a: QLinear, b: QLinear) -> bool:
    """Whether every number and every dtype is the same."""
    pairs = ((a.codes, b.codes), (a.scale, b.scale), (a.zero, b.zero), (a.group, b.group))
    return a.bits == b.bits and all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in pairs)


def stream(words: npt.NDArray[np.int32]) -> int:
    """Words as one number: word i is at bit 32 * i."""
    return sum((int(word) & 0xFFFFFFFF) << 32 * i for i, word in enumerate(words))

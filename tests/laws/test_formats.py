"""Law 1: formats never round. decode(encode(q)) == q bit for bit, or encode refuses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1quant import bits as packing
from r1quant.errors import RecipeError
from r1quant.formats import gptq
from r1quant.grid import Grid
from r1quant.qlinear import QLinear


@st.composite
def qlinears(draw: st.DrawFn, zero_min: int = 1) -> QLinear:
    bits = draw(st.sampled_from([2, 3, 4, 8]))
    size = draw(st.sampled_from([16, 32, 64]))
    block = packing.values_per_block(bits)
    out = draw(st.integers(1, 3)) * block
    groups = draw(st.integers(1, 3))
    columns = int(np.lcm(size, block)) * groups
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    groups = columns // size
    group = (np.arange(columns) // size).astype(np.int32)
    if draw(st.booleans()):
        group = rng.permutation(group)  # an act-order checkpoint of somebody else
    scale = (rng.uniform(1e-3, 1, (out, groups)) * rng.choice([-1, 1], (out, groups))).astype(np.float16)
    return QLinear(
        codes=rng.integers(0, 2**bits, (out, columns), dtype=np.uint8),
        scale=scale,
        zero=rng.integers(zero_min, 2**bits, (out, groups), dtype=np.uint8),
        group=group,
        bits=bits,
    )


def same(a: QLinear, b: QLinear) -> bool:
    pairs = ((a.codes, b.codes), (a.scale, b.scale), (a.zero, b.zero), (a.group, b.group))
    return a.bits == b.bits and all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in pairs)


@given(qlinears())
@settings(max_examples=60, deadline=None)
def test_gptq_round_trip(q: QLinear) -> None:
    q.validate()
    again = gptq.decode(gptq.encode(q), q.bits)
    again.validate()
    assert same(q, again)
    assert np.array_equal(q.dequantize(), again.dequantize())


@given(qlinears())
@settings(max_examples=30, deadline=None)
def test_gptq_against_a_reader_that_goes_bit_by_bit(q: QLinear) -> None:
    """The format's own sentence, executed literally: element k of column n at bit b*k of the column's stream."""
    tensors = gptq.encode(q)
    out, columns = q.shape
    rng = np.random.default_rng(0)
    for n, k in zip(rng.integers(0, out, 50), rng.integers(0, columns, 50), strict=True):
        column = [int(word) & 0xFFFFFFFF for word in tensors["qweight"][:, n]]
        stream = sum(word << 32 * i for i, word in enumerate(column))
        code = stream >> q.bits * int(k) & (1 << q.bits) - 1
        g = int(tensors["g_idx"][k])
        row = [int(word) & 0xFFFFFFFF for word in tensors["qzeros"][g]]
        zero = (sum(w << 32 * i for i, w in enumerate(row)) >> q.bits * int(n) & (1 << q.bits) - 1) + 1
        value = np.float32(tensors["scales"][g, n]) * (code - zero)
        assert value == q.dequantize()[n, k]


@given(qlinears(zero_min=0))
@settings(max_examples=30, deadline=None)
def test_gptq_stores_or_refuses_a_zero_point_of_zero(q: QLinear) -> None:
    if (q.zero == 0).any():
        with pytest.raises(RecipeError, match="zero point is 0"):
            gptq.encode(q)
    else:
        assert same(q, gptq.decode(gptq.encode(q), q.bits))


@given(qlinears(zero_min=0))
@settings(max_examples=20, deadline=None)
def test_version_2_stores_zero_points_as_they_are(q: QLinear) -> None:
    one_more = QLinear(q.codes, q.scale, np.maximum(q.zero, 1), q.group, q.bits)
    tensors = gptq.encode(one_more)
    read = gptq.decode(tensors, q.bits, version=2)
    assert np.array_equal(read.zero + 1, one_more.zero)


def test_specs_are_what_encode_writes() -> None:
    for bits in (2, 3, 4, 8):
        for size in (32, -1):
            grid = Grid(bits, size)
            codes = np.zeros((32, 96), np.uint8)
            groups = grid.groups(96)
            q = QLinear(
                codes,
                np.ones((32, groups), np.float16),
                np.full((32, groups), grid.midpoint, np.uint8),
                grid.group_of_column(96),
                bits,
            )
            written = gptq.encode(q)
            for spec, (suffix, array) in zip(gptq.specs("x", (32, 96), grid), written.items(), strict=True):
                assert spec.name == f"x.{suffix}"
                assert spec.shape == array.shape
                assert spec.nbytes == array.nbytes


@given(st.integers(2, 8), st.integers(1, 5), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_packing_is_a_dense_little_endian_stream(bits: int, blocks: int, seed: int) -> None:
    n = packing.values_per_block(bits) * blocks
    values = np.random.default_rng(seed).integers(0, 2**bits, (3, n), dtype=np.uint8)
    words = packing.pack(values, bits)
    assert words.dtype == np.int32
    assert words.shape == (3, n * bits // 32)
    for row, packed in zip(values, words, strict=True):
        stream = sum(int(v) << bits * i for i, v in enumerate(row))
        assert stream == sum((int(w) & 0xFFFFFFFF) << 32 * i for i, w in enumerate(packed))
    assert np.array_equal(packing.unpack(words, bits), values)


def test_packing_refuses_ragged_rows() -> None:
    with pytest.raises(ValueError, match="do not fill"):
        packing.pack(np.zeros((1, 7), np.uint8), 4)

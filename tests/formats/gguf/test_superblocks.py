"""Blocks of every type: what goes in comes out bit for bit, judged by the gguf package's and llama.cpp's decoders."""

from __future__ import annotations

import ctypes
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1quant.core.blocklinear import BlockLinear
from r1quant.core.blocktypes import BLOCK_TYPES
from r1quant.formats.gguf import superblocks
from r1quant.formats.gguf.layouts import LAYOUTS

from .blocklinears import at_random, linear_of, raw_of, same

WITH_BOOK = [name for name, of in BLOCK_TYPES.items() if of.book is not None]
EVERY = pytest.mark.parametrize("type", BLOCK_TYPES)


def bits_of(values: np.ndarray) -> np.ndarray:
    """So that -0.0 and 0.0 differ."""
    return np.ascontiguousarray(values, np.float32).view(np.uint32)


def test_every_type_has_a_layout_and_the_number_and_sizes_that_the_gguf_package_knows() -> None:
    assert set(LAYOUTS) == set(BLOCK_TYPES)
    for name, of in BLOCK_TYPES.items():
        number = gguf.GGMLQuantizationType[name]
        assert (of.number, (of.block, of.nbytes)) == (number, gguf.GGML_QUANT_SIZES[number])


@EVERY
@settings(max_examples=25)
@given(out=st.integers(1, 5), blocks=st.integers(1, 4), seed=st.integers(0, 1 << 30))
def test_a_linear_comes_back_field_by_field(type: str, out: int, blocks: int, seed: int) -> None:
    q = linear_of(type, out, blocks, at_random(seed))
    q.validate()
    raw = superblocks.pack(q)
    assert raw.dtype == np.uint8 and raw.shape == (out, q.of.row_bytes(q.shape[1]))
    assert same(superblocks.unpack(raw, type), q)


@EVERY
@settings(max_examples=25)
@given(out=st.integers(1, 5), blocks=st.integers(1, 4), seed=st.integers(0, 1 << 30))
def test_any_bytes_come_back_and_mean_what_the_gguf_package_says(type: str, out: int, blocks: int, seed: int) -> None:
    raw = raw_of(type, out, blocks, at_random(seed))
    q = superblocks.unpack(raw, type)
    q.validate()
    assert np.array_equal(superblocks.pack(q), raw)
    theirs = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[type])
    assert np.array_equal(bits_of(q.dequantize()), bits_of(theirs))


@EVERY
def test_what_is_worked_on_in_pieces_is_the_same(type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = raw_of(type, 11, 2, at_random(5))
    whole = superblocks.unpack(raw, type)
    monkeypatch.setattr(superblocks, "PIECE", 3 * whole.shape[1])
    assert same(superblocks.unpack(raw, type), whole)
    assert np.array_equal(superblocks.pack(whole), raw)


@EVERY
def test_rows_in_any_order_and_memory_layout_are_packed_alike(type: str) -> None:
    q = linear_of(type, 6, 2, at_random(8))
    raw = superblocks.pack(q)
    assert np.array_equal(superblocks.pack(q.take(slice(None, None, -1))), raw[::-1])
    assert same(superblocks.unpack(raw[::2], type), q.take(slice(None, None, 2)))
    fortran = BlockLinear(type, np.asfortranarray(q.codes), q.d, q.scales, q.dmin, q.minima)
    assert np.array_equal(superblocks.pack(fortran), raw)


@EVERY
def test_no_rows_are_no_bytes(type: str) -> None:
    raw = np.empty((0, 2 * BLOCK_TYPES[type].nbytes), np.uint8)
    q = superblocks.unpack(raw, type)
    assert q.shape == (0, 2 * BLOCK_TYPES[type].block)
    assert superblocks.pack(q).shape == raw.shape


@pytest.mark.parametrize("type", WITH_BOOK)
def test_combinations_that_no_entry_has_are_refused(type: str) -> None:
    q = linear_of(type, 2, 1, at_random(1))
    book = q.of.book
    assert book is not None
    start, step = (0, 2) if book.signs == "shift" else (len(q.of.levels) // 2, 1)
    allowed = {tuple(row) for row in _positive(type)}
    tried = (tuple(np.unravel_index(i, (len(q.of.levels) // 2,) * book.width)) for i in range(10**6))
    missing = next(digits for digits in tried if digits not in allowed)
    q.codes[1, :32] = start  # all of the same sign, or moved down
    q.codes[1, : book.width] = start + step * np.array(missing)
    with pytest.raises(ValueError, match=f"no entry of the code book of {type}"):
        superblocks.pack(q)


def _positive(type: str) -> np.ndarray:
    from r1quant.formats.gguf import codebooks

    book = BLOCK_TYPES[type].book
    assert book is not None
    return np.searchsorted(np.unique(codebooks.book(book.name)), codebooks.book(book.name))


@pytest.mark.parametrize("type", ["IQ2_XXS", "IQ2_XS", "IQ3_XXS"])
def test_an_odd_number_of_negative_weights_is_refused(type: str) -> None:
    q = linear_of(type, 2, 1, at_random(2))
    q.codes[0, 13] = len(q.of.levels) - 1 - q.codes[0, 13]
    with pytest.raises(ValueError, match="even number of negative"):
        superblocks.pack(q)


@pytest.mark.parametrize(("type", "columns"), [("IQ1_S", slice(8, 16)), ("IQ1_S", slice(3, 4)), ("IQ1_M", slice(3, 4))])
def test_columns_that_do_not_move_together_are_refused(type: str, columns: slice) -> None:
    q = linear_of(type, 2, 1, at_random(3))
    q.codes[1, columns] ^= 1
    with pytest.raises(ValueError, match="together"):
        superblocks.pack(q)


def test_invalid_linears_and_bytes_are_refused() -> None:
    q = linear_of("Q4_K", 2, 1, at_random(4))
    q.codes[0, 0] = 16
    with pytest.raises(ValueError, match="codes must name levels"):
        superblocks.pack(q)
    with pytest.raises(ValueError, match="not whole blocks of Q4_K, of 144 bytes"):
        superblocks.unpack(np.zeros((2, 145), np.uint8), "Q4_K")


@EVERY
def test_a_number_that_is_not_finite_is_refused(type: str) -> None:
    from .blocklinears import HIGH_BYTES

    for at in HIGH_BYTES.get(type, (1,)):
        raw = raw_of(type, 1, 2, at_random(4))
        raw[0, BLOCK_TYPES[type].nbytes + at] |= 0x7C
        if type == "IQ1_M":
            raw[0, BLOCK_TYPES[type].nbytes + 53] |= 0xF0
        with pytest.raises(ValueError, match="not finite"):
            superblocks.unpack(raw, type)


@EVERY
def test_weights_are_those_of_llama_cpp(type: str) -> None:
    """Bit for bit: levels times scales are exact in float32, so it does not matter whether the last sum is fused."""
    llama_cpp = pytest.importorskip("llama_cpp")
    library = next(iter((Path(llama_cpp.__file__).parent / "lib").glob("libggml-base.*")), None)
    if library is None:
        pytest.skip("no library of ggml of its own")
    decode = getattr(ctypes.CDLL(str(library)), f"dequantize_row_{type.lower().replace('_k', '_K')}")
    decode.argtypes, decode.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64), None
    raw = np.ascontiguousarray(raw_of(type, 20, 2, at_random(9)))
    q = superblocks.unpack(raw, type)
    theirs = np.empty(q.shape, np.float32)
    decode(raw.ctypes.data, theirs.ctypes.data, theirs.size)
    assert np.array_equal(bits_of(q.dequantize()), bits_of(theirs))

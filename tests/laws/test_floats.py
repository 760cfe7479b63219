"""Floats as bytes: to float32 exactly, and back as torch rounds them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from r1quant.core.floats import FLOAT_DTYPES, fits_float16, round_to, significant_bits, widen

TORCH = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
words = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=64)
# Signs, zeros, subnormals, the borders of float16 and bfloat16, ties both ways, infinities, NaN.
EDGES = [
    0x00000000, 0x80000000, 0x00000001, 0x007FFFFF, 0x00800000, 0x33000000, 0x33000001, 0x38800000, 0x387FE000,
    0x477FE000, 0x477FEFFF, 0x477FF000, 0x3F808000, 0x3F818000, 0x3F808001, 0x3F801000, 0x3F803000, 0x7F7F7FFF,
    0x7F7F8000, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0xFFFFFFFF,
]  # fmt: skip


def same(ours: npt.NDArray[np.float32], theirs: torch.Tensor) -> bool:
    """Bit for bit; a NaN is as good as another."""
    expected = theirs.float().numpy()
    nan = np.isnan(ours) & np.isnan(expected)
    return bool((nan | (ours.view(np.uint32) == expected.view(np.uint32))).all())


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@given(words)
@settings(max_examples=50, deadline=None)
def test_as_torch_casts(dtype: str, drawn: list[int]) -> None:
    values = np.array(drawn + EDGES, np.uint32).view(np.float32)
    there = torch.from_numpy(values).to(TORCH[dtype])
    raw = round_to(values, dtype)
    assert raw.dtype == np.uint8 and raw.nbytes == there.nbytes
    assert same(widen(raw, dtype), there)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_every_number_of_16_bits_comes_back(dtype: str) -> None:
    raw = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16).view(np.uint8)
    values = widen(raw, dtype)
    assert same(values, torch.from_numpy(raw).view(TORCH[dtype]))
    number = ~np.isnan(values)
    assert np.array_equal(round_to(values, dtype).view(np.uint16)[number], raw.view(np.uint16)[number])


@given(words)
@settings(max_examples=50, deadline=None)
def test_significant_bits_say_what_holds_the_values(drawn: list[int]) -> None:
    """Normal numbers: 8 bits are what bfloat16 has, 11 what float16 has within its range."""
    values = np.array([word & 0x807FFFFF | 0x3C000000 for word in drawn], np.uint32).view(np.float32)
    for count in range(1, len(values) + 1):
        some = values[:count]
        digits = significant_bits(some)
        assert 1 <= digits <= 24
        for dtype, held in (("BF16", 8), ("F16", 11), ("F32", 24)):
            assert np.array_equal(widen(round_to(some, dtype), dtype), some) == (digits <= held)
        assert fits_float16(some) == (digits <= 11)


def test_significant_bits_of_known_numbers() -> None:
    for value, digits in ((1.0, 1), (-3.0, 2), (255.0, 8), (0.1, 24), (1 + 2**-10, 11), (0.0, 1)):
        assert significant_bits(np.array([value], np.float32)) == digits
    assert significant_bits(np.array([1.0, 255.0, 2.0], np.float32)) == 8
    assert significant_bits(np.empty((0, 3), np.float32)) == 0


def test_what_fits_float16() -> None:
    for value, fits in ((65504.0, True), (65536.0, False), (2.0**-24, True), (2.0**-25, False), (np.nan, False)):
        assert fits_float16(np.array([1.0, value], np.float32)) == fits
    assert fits_float16(np.array([0.1], np.float16)) and fits_float16(np.empty(0, np.float32))


def test_only_floats_are_widened_and_rounded() -> None:
    with pytest.raises(ValueError, match="I32 is not a floating-point dtype"):
        widen(np.zeros(4, np.uint8), "I32")
    with pytest.raises(ValueError, match="F8_E4M3 is not a floating-point dtype"):
        round_to(np.zeros(4, np.float32), "F8_E4M3")


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_matrices_that_are_not_contiguous_are_rounded_in_order(dtype: str) -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4).T
    assert widen(round_to(values, dtype), dtype).tolist() == values.reshape(-1).tolist()

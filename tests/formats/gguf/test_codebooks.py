"""The code books: their numbers, and that an entry is found again under its key."""

from __future__ import annotations

import numpy as np
import pytest

from r1quant.core.blocktypes import BLOCK_TYPES
from r1quant.formats.gguf import codebooks

BOOKS = {of.book.name: (of, of.book) for of in BLOCK_TYPES.values() if of.book is not None}
SIZES = {
    "IQ3_S": (512, 4), "IQ3_XXS": (256, 4), "IQ2_S": (1024, 8), "IQ2_XS": (512, 8), "IQ2_XXS": (256, 8),
    "IQ1_M": (2048, 8), "IQ1_S": (2048, 8),
}  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
def test_a_book_has_the_size_and_the_levels_of_its_type(name: str) -> None:
    of, described = BOOKS[name]
    entries = codebooks.book(name)
    assert entries.dtype == np.float32
    assert entries.shape == SIZES[name]
    assert described.width == SIZES[name][1]
    levels = {float(m) for m in codebooks.magnitudes(name)}
    if described.signs == "shift":
        levels = {m + shift for m in levels for shift in (-0.125, 0.125)}
    else:
        levels |= {-m for m in levels}
    assert sorted(levels) == list(of.levels)


@pytest.mark.parametrize("name", SIZES)
def test_every_entry_is_found_under_its_key_and_nothing_else_is(name: str) -> None:
    digits, bits = codebooks.digits(name), codebooks.digit_bits(name)
    keys = codebooks.keys(digits, bits)
    numbers = codebooks.numbers(name)
    np.testing.assert_array_equal(numbers[keys], np.arange(len(digits)))
    assert int((numbers >= 0).sum()) == len(digits)
    np.testing.assert_array_equal(codebooks.magnitudes(name)[digits], codebooks.book(name))


def test_first_entries() -> None:
    np.testing.assert_array_equal(codebooks.book("IQ2_XXS")[1], [43, 8, 8, 8, 8, 8, 8, 8])
    np.testing.assert_array_equal(codebooks.book("IQ3_S")[1], [3, 1, 1, 1])
    np.testing.assert_array_equal(codebooks.book("IQ1_S")[2], [0, 0, -1, -1, -1, -1, -1, -1])


@pytest.mark.parametrize(("width", "bits"), [(4, 3), (4, 2), (8, 2)])
def test_keys_have_one_digit_after_the_other(width: int, bits: int) -> None:
    digits = np.random.default_rng(3).integers(0, 1 << bits, (50, width), np.uint8)
    slow = [sum(int(d) << (bits * j) for j, d in enumerate(row)) for row in digits]
    np.testing.assert_array_equal(codebooks.keys(digits, bits), slow)


@pytest.mark.parametrize("name", ["IQ9_S", "Q4_0", "np"])
def test_an_unknown_book_is_named(name: str) -> None:
    with pytest.raises(KeyError, match=name):
        codebooks.book(name)

"""Bytes written out: what other programs expect to find in a GPTQ file."""

from __future__ import annotations

import numpy as np
import pytest

from r1quant.formats import gptq
from r1quant.grid import Grid
from r1quant.qlinear import QLinear


def symmetric(bits: int, codes: np.ndarray) -> QLinear:
    grid = Grid(bits, 32)
    out, columns = codes.shape
    shape = (out, columns // 32)
    zero = np.full(shape, grid.midpoint, np.uint8)
    return QLinear(codes, np.ones(shape, np.float16), zero, grid.group_of_column(columns), bits)


@pytest.mark.parametrize(("bits", "word"), [(2, 0x55555555), (4, 0x77777777), (8, 0x7F7F7F7F)])
def test_symmetric_zero_words(bits: int, word: int) -> None:
    zeros = gptq.encode(symmetric(bits, np.zeros((32, 32), np.uint8)))["qzeros"]
    assert {int(w) & 0xFFFFFFFF for w in zeros.flat} == {word}


def test_4_bit_word() -> None:
    codes = np.zeros((8, 32), np.uint8)
    codes[0, :8] = [0, 1, 2, 3, 4, 5, 6, 7]
    assert int(gptq.encode(symmetric(4, codes))["qweight"][0, 0]) == 0x76543210


def test_3_bit_words_cross_borders() -> None:
    values = [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 6, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7]
    codes = np.tile(np.array(values, np.uint8), (32, 1))
    words = [int(w) & 0xFFFFFFFF for w in gptq.encode(symmetric(3, codes))["qweight"][:, 0]]
    low = sum(v << 3 * i for i, v in enumerate(values[:10])) | (values[10] & 3) << 30
    middle = values[10] >> 2 | sum(v << 3 * i + 1 for i, v in enumerate(values[11:21])) | (values[21] & 1) << 31
    high = values[21] >> 1 | sum(v << 3 * i + 2 for i, v in enumerate(values[22:]))
    assert words == [low, middle, high]


def test_configuration() -> None:
    stated = gptq.config(Grid(4, 128), 0.01, True, "r1quant:0")
    required = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
    assert stated | required == stated
    assert stated["checkpoint_format"] == stated["format"] == "gptq"
    assert None not in stated.values()
    assert "dynamic" not in stated

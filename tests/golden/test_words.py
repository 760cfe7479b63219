"""Words written out: what other programs expect to find in GPTQ, AWQ and compressed-tensors files."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from r1quant.core.grid import Grid
from r1quant.core.qlinear import QLinear
from r1quant.errors import RecipeError
from r1quant.formats.table import CODECS


def symmetric(bits: int, codes: npt.NDArray[np.uint8], scale: float = 1.0) -> QLinear:
    grid = Grid(bits, 32)
    out, columns = codes.shape
    shape = (out, columns // 32)
    zero = np.full(shape, grid.midpoint, np.uint8)
    return QLinear(codes, np.full(shape, scale, np.float16), zero, grid.group_of_column(columns), bits)


def asymmetric(bits: int, zero: npt.NDArray[np.uint8]) -> QLinear:
    """zero: [out, groups]"""
    out, groups = zero.shape
    group = Grid(bits, 32).group_of_column(32 * groups)
    return QLinear(np.zeros((out, 32 * groups), np.uint8), np.ones(zero.shape, np.float16), zero, group, bits)


def words(array: npt.NDArray[np.int32]) -> list[int]:
    assert array.dtype == np.int32
    return [int(word) & 0xFFFFFFFF for word in array.flat]


@pytest.mark.parametrize(
    ("name", "bits", "word"),
    [
        ("gptq", 2, 0x55555555),
        ("gptq", 4, 0x77777777),
        ("gptq", 8, 0x7F7F7F7F),
        ("gptq-v2", 2, 0xAAAAAAAA),
        ("gptq-v2", 4, 0x88888888),
        ("gptq-v2", 8, 0x80808080),
        ("awq", 4, 0x88888888),
    ],
)
def test_symmetric_zero_words(name: str, bits: int, word: int) -> None:
    zeros = CODECS[name].encode(symmetric(bits, np.zeros((32, 32), np.uint8)))["qzeros"]
    assert set(words(zeros)) == {word}


def test_symmetric_zero_words_of_3_bits() -> None:
    """Stored as 3 in version 1: 011 011 ... over 96 bits; as 4 in version 2: 100 100 ..."""
    q = symmetric(3, np.zeros((32, 32), np.uint8))
    assert words(CODECS["gptq"].encode(q)["qzeros"]) == [0xDB6DB6DB, 0xB6DB6DB6, 0x6DB6DB6D]
    assert words(CODECS["gptq-v2"].encode(q)["qzeros"]) == [0x24924924, 0x49249249, 0x92492492]


def counting(out: int) -> npt.NDArray[np.uint8]:
    """Row 0 counts 0 .. 7 along the columns, and column 0 counts along the rows."""
    codes = np.zeros((out, 32), np.uint8)
    codes[0, :8] = range(8)
    codes[:8, 0] = range(8)
    return codes


def test_4_bit_words_along_the_input() -> None:
    q = symmetric(4, counting(8))
    assert words(CODECS["gptq"].encode(q)["qweight"])[0] == 0x76543210
    assert words(CODECS["compressed-tensors"].encode(q)["weight_packed"])[0] == 0x76543210


def test_awq_words_along_the_output_in_its_own_order() -> None:
    assert words(CODECS["awq"].encode(symmetric(4, counting(8)))["qweight"])[0] == 0x75316420
    zero = np.arange(16, dtype=np.uint8).reshape(16, 1)
    assert words(CODECS["awq"].encode(asymmetric(4, zero))["qzeros"]) == [0x75316420, 0xFDB9ECA8]


def test_zero_points_are_packed_along_the_output() -> None:
    zero = np.arange(8, dtype=np.uint8).reshape(8, 1) + np.uint8(1)
    q = asymmetric(4, zero)
    assert words(CODECS["gptq"].encode(q)["qzeros"]) == [0x76543210]
    assert words(CODECS["gptq-v2"].encode(q)["qzeros"]) == [0x87654321]
    assert words(CODECS["compressed-tensors"].encode(q)["weight_zero_point"]) == [0x87654321]
    assert CODECS["compressed-tensors"].encode(q)["weight_zero_point"].shape == (1, 1)


def test_3_bit_words_cross_borders() -> None:
    values = [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 6, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7]
    q = symmetric(3, np.tile(np.array(values, np.uint8), (32, 1)))
    low = sum(v << 3 * i for i, v in enumerate(values[:10])) | (values[10] & 3) << 30
    middle = values[10] >> 2 | sum(v << 3 * i + 1 for i, v in enumerate(values[11:21])) | (values[21] & 1) << 31
    high = values[21] >> 1 | sum(v << 3 * i + 2 for i, v in enumerate(values[22:]))
    assert words(CODECS["gptq"].encode(q)["qweight"][:, 0]) == [low, middle, high]
    assert words(CODECS["compressed-tensors"].encode(q)["weight_packed"][0]) == [low, middle, high]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_compressed_tensors_are_gptq_transposed(bits: int) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 2**bits, (64, 96), dtype=np.uint8)
    zero = rng.integers(0, 2**bits, (64, 3), dtype=np.uint8)
    q = QLinear(codes, np.ones((64, 3), np.float16), zero, Grid(bits, 32).group_of_column(96), bits)
    theirs, ours = CODECS["gptq-v2"].encode(q), CODECS["compressed-tensors"].encode(q)
    assert np.array_equal(ours["weight_packed"], theirs["qweight"].T)
    assert np.array_equal(ours["weight_zero_point"], theirs["qzeros"].T)


def test_signed_bytes_of_int_quantized() -> None:
    codes = np.zeros((1, 32), np.uint8)
    codes[0, :4] = [0, 127, 128, 255]
    tensors = CODECS["compressed-tensors-int"].encode(symmetric(8, codes))
    assert tensors["weight"].dtype == np.int8
    assert tensors["weight"][0, :4].tolist() == [-128, -1, 0, 127]
    assert set(tensors) == {"weight", "weight_scale"}
    zero = np.array([[0], [128], [255]], np.uint8)
    assert CODECS["compressed-tensors-int"].encode(asymmetric(8, zero))["weight_zero_point"].tolist() == [
        [-128],
        [0],
        [127],
    ]


def test_scales() -> None:
    """float16 everywhere, also if bfloat16 would hold them: readers dequantize in the dtype that they find."""
    codes = np.zeros((8, 32), np.uint8)
    for name, codec in CODECS.items():
        suffix = "weight_scale" if name.startswith("compressed-tensors") else "scales"
        for value, word in ((1.5, 0x3E00), (1.5 + 2**-9, 0x3E02), (2.0**-24, 0x0001)):
            scales = codec.encode(symmetric(8 if name.endswith("-int") else 4, codes, value))[suffix]
            assert scales.dtype == np.float16 and set(scales.view(np.uint16).flat) == {word}


def test_the_group_map_is_written_although_trivial() -> None:
    tensors = CODECS["gptq"].encode(symmetric(4, np.zeros((8, 64), np.uint8)))
    assert list(tensors) == ["qweight", "qzeros", "scales", "g_idx"]
    assert tensors["g_idx"].dtype == np.int32 and tensors["g_idx"].tolist() == [0] * 32 + [1] * 32


def test_a_zero_point_of_0_is_not_wrapped_around() -> None:
    zero = np.array([[0], [5], [5], [5], [5], [5], [5], [5]], np.uint8)
    with pytest.raises(RecipeError, match="zero point is 0") as refused:
        CODECS["gptq"].encode(asymmetric(4, zero))
    assert "gptq-v2" in refused.value.message
    assert words(CODECS["gptq-v2"].encode(asymmetric(4, zero))["qzeros"]) == [0x55555550]

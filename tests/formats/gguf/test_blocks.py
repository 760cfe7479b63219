"""Blocks: what goes in comes out bit for bit, judged by the gguf package's own decoder and by bytes written out."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1quant.checkpoint.artifact import LinearSpec
from r1quant.core.qlinear import QLinear
from r1quant.errors import RecipeError
from r1quant.formats.gguf import blocks
from r1quant.formats.gguf.options import BLOCK_TYPES, differences, problem, smallest

from .held import random_linear

DECODER = {name: gguf.GGMLQuantizationType[name.upper()] for name in BLOCK_TYPES}


def bits_of(values: np.ndarray) -> np.ndarray:
    """So that -0.0 and 0.0 differ."""
    return np.ascontiguousarray(values, np.float32).view(np.uint32)


def check_exact(q: QLinear, kind: str) -> None:
    raw = blocks.encode(q, kind)
    assert raw.dtype == np.uint8 and raw.shape == (q.shape[0], blocks.row_bytes(kind, q.shape[1]))
    assert np.array_equal(bits_of(gguf.quants.dequantize(raw, DECODER[kind])), bits_of(q.dequantize()))
    back = blocks.decode(raw, kind)
    back.validate()
    assert np.array_equal(bits_of(back.dequantize()), bits_of(q.dequantize()))
    per_block = np.repeat(q.scale, q.shape[1] // q.groups // 32, axis=1)
    assert np.array_equal(back.scale, per_block) and back.contiguous and back.groups == q.shape[1] // 32
    ours = q.codes.astype(int) - q.zero.astype(int)[:, q.group]
    theirs = back.codes.astype(int) - back.zero.astype(int)[:, back.group]
    assert np.array_equal(ours, theirs)
    assert np.array_equal(blocks.encode(back, kind), raw)


@settings(max_examples=120)
@given(
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    group_size=st.sampled_from([32, 64, 96, 128, -1]),
    out=st.integers(1, 9),
    times=st.integers(1, 3),
    significant=st.integers(1, 11),
    signed=st.booleans(),
    seed=st.integers(0, 1 << 30),
)
def test_every_type_that_has_no_problem_is_exact(
    bits: int, symmetric: bool, group_size: int, out: int, times: int, significant: int, signed: bool, seed: int
) -> None:
    columns = 384 * times if group_size != 96 else 96 * times
    q = random_linear(
        np.random.default_rng(seed), (out, columns),
        bits=bits, group_size=group_size, symmetric=symmetric, significant=significant, signed=signed,
    )  # fmt: skip
    spec = LinearSpec.of(q)
    for kind in BLOCK_TYPES:
        if kind == "q4_1" and (signed or problem(spec, kind)):
            continue
        if problem(spec, kind) is None:
            check_exact(q, kind)
        else:
            with pytest.raises(RecipeError):
                blocks.encode(q, kind)
    chosen = smallest(spec)
    assert (problem(spec) is None) == (chosen is not None)


@pytest.mark.parametrize(
    ("bits", "symmetric", "significant", "chosen"),
    [
        (4, True, 11, "q4_0"), (3, True, 11, "q4_0"), (2, True, 11, "q4_0"), (3, False, 11, "q4_0"),
        (2, False, 11, "q4_0"), (4, False, 7, "q4_1"), (4, False, 8, "q5_0"), (4, False, 11, "q5_0"),
        (5, True, 11, "q5_0"), (5, False, 11, "q8_0"), (6, True, 11, "q8_0"), (7, False, 11, "q8_0"),
        (8, True, 11, "q8_0"), (8, False, 11, None),
    ],
)  # fmt: skip
def test_the_smallest_exact_type_is_chosen(bits: int, symmetric: bool, significant: int, chosen: str | None) -> None:
    q = random_linear(
        np.random.default_rng(1), (64, 128), bits=bits, symmetric=symmetric, significant=significant, signed=False
    )
    assert smallest(LinearSpec.of(q)) == chosen
    if chosen:
        check_exact(q, chosen)


def linear(difference: list[int], scale: float, bits: int, zero: int) -> QLinear:
    """One block of 32 weights that are `difference`, repeated, times the scale."""
    codes = np.resize(np.array(difference) + zero, 32).astype(np.uint8)[None]
    group = np.zeros(32, np.int32)
    return QLinear(codes, np.array([[scale]], np.float16), np.array([[zero]], np.uint8), group, bits)


def test_golden_bytes() -> None:
    """Byte j of the nibbles has weight j below and weight j + 16 above; 1.0 is 0x3c00 and -2.0 is 0xc000."""
    ramp = linear(list(range(-8, 8)), 1.0, 4, 8)  # weights 0..15 and 16..31 are the same ramp
    assert blocks.encode(ramp, "q4_0").tobytes().hex() == "003c" + "00112233445566778899aabbccddeeff"
    halves = linear([-7] * 16 + [2] * 16, -2.0, 4, 8)
    assert blocks.encode(halves, "q4_0").tobytes().hex() == "00c0" + "a1" * 16
    three_bits = linear([-4] * 16 + [3] * 16, 1.0, 3, 4)
    assert blocks.encode(three_bits, "q4_0").tobytes().hex() == "003c" + "b4" * 16
    assert blocks.encode(three_bits, "q8_0").tobytes().hex() == "003c" + "fc" * 16 + "03" * 16
    # offset -1.0 * 3 = -3.0 is 0xc200
    offset = linear([-3] * 16 + [12] * 16, 1.0, 4, 3)
    assert blocks.encode(offset, "q4_1").tobytes().hex() == "003c" + "00c2" + "f0" * 16
    # -3 + 16 = 13 has no fifth bit, 12 + 16 = 28 = 16 + 12 has: the upper 16 bits of qh
    assert blocks.encode(offset, "q5_0").tobytes().hex() == "003c" + "0000ffff" + "cd" * 16
    mixed = linear([0, -1], 1.0, 4, 15)  # 16 has the fifth bit, 15 has not
    assert blocks.encode(mixed, "q5_0").tobytes().hex() == "003c" + "55555555" + "00ff" * 8
    wide = linear([-128, 127], 1.0, 8, 128)
    assert blocks.encode(wide, "q8_0").tobytes().hex() == "003c" + "807f" * 16


def test_q4_1_refuses_offsets_that_are_not_exact() -> None:
    rng = np.random.default_rng(5)
    q = random_linear(rng, (8, 64), symmetric=False, significant=11, signed=False)
    with pytest.raises(RecipeError, match="scale \\* zero point exactly"):
        blocks.encode(q, "q4_1")
    negative = random_linear(rng, (8, 64), symmetric=False, significant=3, signed=True)
    with pytest.raises(RecipeError):  # 0.0 would become -0.0
        blocks.encode(negative, "q4_1")
    fits = random_linear(rng, (8, 64), symmetric=False, significant=3, signed=False)
    check_exact(fits, "q4_1")
    assert np.array_equal(blocks.decode(blocks.encode(fits, "q4_1"), "q4_1").zero, fits.zero)


REFUSED = {
    "columns": (LinearSpec((4, 100), 4, -1, (8, 8)), "100 columns are not a multiple of 32"),
    "small groups": (LinearSpec((4, 128), 4, 16, (8, 8)), "group size 16 is not a multiple of 32"),
    "act-order": (LinearSpec((4, 128), 4, None, (8, 8)), "not runs of neighbouring columns"),
    "scales": (LinearSpec((4, 128), 4, 32, (8, 8), 24), "not float16 numbers"),
    "asymmetric 8 bits": (
        LinearSpec((4, 128), 8, 32, (0, 255)),
        "-255 .. 255 steps of the scale, Q8_0 holds -128 .. 127",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_say_why_and_what_to_do(case: str) -> None:
    spec, message = REFUSED[case]
    for kind in ("auto", "q8_0"):
        reason = problem(spec, kind)
        assert reason and message in reason and ": " in reason and "\n" not in reason
    assert problem(spec, "f32") is None


def test_float_types_hold_what_their_significand_holds() -> None:
    spec = LinearSpec((4, 64), 4, 32, (8, 8), 8)
    assert problem(spec, "f16") and problem(spec, "bf16")
    narrow = LinearSpec((4, 64), 3, 32, (4, 4), 8)  # 8 bits times -4..3
    assert problem(narrow, "f16") is None and problem(narrow, "bf16")
    assert differences(narrow) == (-4, 3)


def test_encode_refuses_what_problem_names() -> None:
    q = random_linear(np.random.default_rng(2), (4, 64), group_size=16)
    with pytest.raises(RecipeError, match="group size 16"):
        blocks.encode(q, "q4_0")
    shuffled = QLinear(q.codes, q.scale, q.zero, q.group[::-1].copy(), 4)
    with pytest.raises(RecipeError, match="act-order"):
        blocks.encode(shuffled, "q4_0")


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_a_block_without_a_scale_is_all_zeros(kind: str) -> None:
    raw = np.random.default_rng(3).integers(0, 256, (3, 2 * blocks.BLOCK_BYTES[kind]), np.uint8)
    each = raw.reshape(3, 2, -1)
    each[:, :, : blocks.HEADS[kind] if kind != "q5_0" else 2] = 0
    q = blocks.decode(raw, kind)
    q.validate()
    assert not q.dequantize().any() and not np.signbit(q.dequantize()).any()
    assert np.array_equal(q.codes, np.repeat(q.zero, 32, axis=1))


def test_blocks_that_are_no_integer_grid_are_not_taken_for_one() -> None:
    rng = np.random.default_rng(4)
    raw = gguf.quants.quantize(rng.standard_normal((4, 64)).astype(np.float32), DECODER["q4_1"])
    with pytest.raises(ValueError, match="whole multiple"):
        blocks.decode(raw, "q4_1")
    raw = gguf.quants.quantize(rng.standard_normal((4, 64)).astype(np.float32), DECODER["q8_0"])
    raw[1, :2] = np.array([np.inf], np.float16).view(np.uint8)
    with pytest.raises(ValueError, match="not finite"):
        blocks.decode(raw, "q8_0")


@pytest.mark.parametrize("kind", ["q4_0", "q5_0", "q8_0"])
def test_any_bytes_are_read_as_the_gguf_package_reads_them(kind: str) -> None:
    raw = np.random.default_rng(6).integers(0, 256, (64, 8 * blocks.BLOCK_BYTES[kind]), np.uint8)
    raw.reshape(64, 8, -1)[..., 1] &= 0xBF  # no scale beyond the finite ones
    q = blocks.decode(raw, kind)
    assert np.array_equal(q.dequantize(), gguf.quants.dequantize(raw, DECODER[kind]))

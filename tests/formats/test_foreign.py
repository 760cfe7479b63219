"""Checkpoints of other programs, in all the ways they differ from ours, read exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.formats.foreign import (
    LAYER,
    OTHER,
    awq,
    compressed,
    folder_of,
    gptq,
    groups,
    numbers,
    pack,
    reads,
    scheme,
    weights,
)

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False}
AWQ = {"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": 32, "zero_point": True}


def runs(columns: int, size: int) -> np.ndarray:
    return np.arange(columns) // size


def bare(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Without group maps, as older files are."""
    return {name: tensor for name, tensor in tensors.items() if not name.endswith("g_idx")}


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_without_group_maps(bits: int, tmp_path: Path) -> None:
    codes, zero, scale = numbers(32, 64, 2, bits)
    tensors = bare(gptq(LAYER, codes, zero, scale, runs(64, 32), bits))
    ours = folder_of(tmp_path / "m", tensors, {**GPTQ, "bits": bits})
    assert ours.format == "gptq" and reads(ours, LAYER, weights(codes, zero, scale, runs(64, 32)))


def test_gptq_where_rules_change_bits_and_groups(tmp_path: Path) -> None:
    """The first rule that matches counts, from the beginning of the name, with or without its sign."""
    rules = {
        "-:.*lm_head": {},
        r"model\.layers\.1\..*": {"bits": 8, "group_size": -1},
        r"+:.*down_proj": {"group_size": 16},
        r"+:.*": {"bits": 2},
    }
    four, eight = numbers(32, 64, 4, 4), numbers(32, 64, 1, 8)
    tensors = gptq(LAYER, *four, runs(64, 16), 4) | gptq(OTHER, *eight, runs(64, 64), 8)
    ours = folder_of(tmp_path / "m", bare(tensors), {**GPTQ, "dynamic": rules})
    assert reads(ours, LAYER, weights(*four, runs(64, 16)))
    assert reads(ours, OTHER, weights(*eight, runs(64, 64)))
    assert {linear: (spec.bits, spec.group_size) for linear, spec in ours.linear_specs.items()} == {
        LAYER: (4, 16),
        OTHER: (8, -1),
    }


def test_gptq_with_group_maps_needs_no_statement(tmp_path: Path) -> None:
    """Bits and groups are those of the tensors, whatever the configuration claims."""
    codes, zero, scale = numbers(32, 64, 2, 8)
    tensors = gptq(LAYER, codes, zero, scale, runs(64, 32), 8)
    tensors[f"{LAYER}.g_idx"] = tensors[f"{LAYER}.g_idx"].astype(np.int64)
    ours = folder_of(tmp_path / "m", tensors, {"quant_method": "gptq", "bits": 4, "dynamic": None})
    assert reads(ours, LAYER, weights(codes, zero, scale, runs(64, 32)))


def test_gptq_with_act_order(tmp_path: Path) -> None:
    codes, zero, scale = numbers(32, 64, 2, 4)
    group = np.random.default_rng(0).permutation(runs(64, 32))
    ours = folder_of(tmp_path / "m", gptq(LAYER, codes, zero, scale, group, 4), {**GPTQ, "desc_act": True})
    assert ours.linear_specs[LAYER].group_size is None and ours.linear_specs[LAYER].groups == 2
    assert reads(ours, LAYER, weights(codes, zero, scale, group))


@pytest.mark.parametrize("mapped", [True, False])
def test_gptq_with_a_shorter_last_group(mapped: bool, tmp_path: Path) -> None:
    """96 columns in groups of 64 are 64 and 32, not 48 and 48."""
    codes, zero, scale = numbers(32, 96, 2, 4)
    tensors = gptq(LAYER, codes, zero, scale, runs(96, 64), 4)
    ours = folder_of(tmp_path / "m", tensors if mapped else bare(tensors), {**GPTQ, "group_size": 64})
    assert reads(ours, LAYER, weights(codes, zero, scale, runs(96, 64)))


@pytest.mark.parametrize(("bits", "out"), [(3, 36), (4, 33), (8, 5)])
def test_gptq_with_zero_points_that_do_not_fill_the_last_word(bits: int, out: int, tmp_path: Path) -> None:
    """They can be read, but are not written: other readers do not expect them."""
    codes, zero, scale = numbers(out, 64, 2, bits)
    ours = folder_of(tmp_path / "m", gptq(LAYER, codes, zero, scale, runs(64, 32), bits), GPTQ)
    assert reads(ours, LAYER, weights(codes, zero, scale, runs(64, 32)))
    assert ours.codec is not None and f"{out} output rows" in str(ours.codec.problem(ours.linear_specs[LAYER]))


@pytest.mark.parametrize("key", ["checkpoint_format", "format"])
def test_gptq_version_2(key: str, tmp_path: Path) -> None:
    codes, zero, scale = numbers(32, 64, 2, 4, smallest=0)
    tensors = gptq(LAYER, codes, zero, scale, runs(64, 32), 4, version=2)
    ours = folder_of(tmp_path / "m", tensors, {**GPTQ, key: "gptq_v2"})
    assert ours.format == "gptq-v2" and (zero == 0).any()
    assert reads(ours, LAYER, weights(codes, zero, scale, runs(64, 32)))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_gptqmodel_borrows_from_the_next_zero_point(bits: int, tmp_path: Path) -> None:
    """It takes one from each zero point of a word by one subtraction, and so does it add one when it reads."""
    codes, _, scale = numbers(32, 64, 2, bits)
    zero = np.random.default_rng(0).integers(0, 3, (32, 2))
    tensors = gptq(LAYER, codes, zero, scale, runs(64, 32), bits, version=2)
    ones = sum(1 << bits * i for i in range(32 // bits))
    plain = tensors[f"{LAYER}.qzeros"].view(np.uint32).astype(np.int64)
    tensors[f"{LAYER}.qzeros"] = ((plain - ones) % 2**32).astype(np.uint32).view(np.int32)
    quant_config = {**GPTQ, "bits": bits, "checkpoint_format": "gptq"}
    ours = folder_of(tmp_path / "m", tensors, {**quant_config, "meta": {"quantizer": ["gptqmodel:5.4.0"]}})
    assert reads(ours, LAYER, weights(codes, zero, scale, runs(64, 32)))


def test_other_programs_wrap_each_zero_point_around(tmp_path: Path) -> None:
    """A zero point of 0 is stored as 15 in a file of version 1, and read as (15 + 1) mod 16."""
    codes, _, scale = numbers(32, 64, 2, 4)
    zero = np.random.default_rng(0).integers(0, 3, (32, 2))
    tensors = gptq(LAYER, codes, (zero - 1) % 16 + 1, scale, runs(64, 32), 4)
    ours = folder_of(tmp_path / "m", tensors, {**GPTQ, "meta": {"quantizer": "auto_gptq:0.7.1"}})
    assert reads(ours, LAYER, weights(codes, zero, scale, runs(64, 32)))


def test_heads_biases_and_scales_in_bfloat16(tmp_path: Path) -> None:
    """A quantized head is a linear like any other; a bias stays a tensor of its own."""
    codes, zero, scale = numbers(32, 64, 2, 4)
    expected = weights(codes, zero, scale, runs(64, 32))
    tensors = gptq("lm_head", codes, zero, scale, runs(64, 32), 4) | gptq(LAYER, codes, zero, scale, runs(64, 32), 4)
    tensors[f"{LAYER}.bias"] = np.arange(32, dtype=np.float16)
    tensors[f"{LAYER}.scales"] = torch.from_numpy(tensors[f"{LAYER}.scales"]).bfloat16()
    ours = folder_of(tmp_path / "m", tensors, {**GPTQ, "lm_head": True})
    assert set(ours.tensors) == {"model.embed_tokens.weight", "lm_head.weight", f"{LAYER}.weight", f"{LAYER}.bias"}
    assert reads(ours, "lm_head", expected) and reads(ours, LAYER, expected)
    assert ours.read(f"{LAYER}.bias").tolist() == list(range(32))


def test_a_quantization_that_is_stated_beside_config_json(tmp_path: Path) -> None:
    """As AutoGPTQ and AutoAWQ wrote them at first."""
    codes, zero, scale = numbers(32, 64, 2, 4)
    expected = weights(codes, zero, scale, runs(64, 32))
    quant_config = {"bits": 4, "group_size": 32, "desc_act": False, "sym": True}
    tensors = bare(gptq(LAYER, codes, zero, scale, runs(64, 32), 4))
    ours = folder_of(tmp_path / "gptq", tensors, None, quantize_config=quant_config)
    assert ours.format == "gptq" and reads(ours, LAYER, expected)
    beside = {"zero_point": True, "q_group_size": 32, "w_bit": 4, "version": "GEMM"}
    ours = folder_of(tmp_path / "awq", awq(LAYER, codes, zero, scale), None, quant_config=beside)
    assert ours.format == "awq" and reads(ours, LAYER, expected)


@pytest.mark.parametrize(
    "quant_config",
    [
        AWQ,
        {**AWQ, "version": "GEMM", "modules_to_not_convert": ["lm_head", "mlp.gate"]},
        {"quant_method": "awq", "w_bit": 4, "q_group_size": 32, "version": None, "modules_to_not_convert": None},
        {"quant_method": "AWQ", "format": "gemm", "bits": 4, "group_size": 32},
    ],
)
def test_awq(quant_config: dict[str, Any], tmp_path: Path) -> None:
    codes, zero, scale = numbers(40, 96, 3, 4, smallest=0)
    tensors = awq(LAYER, codes, zero, scale) | {f"{OTHER}.weight": np.ones((4, 4), np.float16)}
    ours = folder_of(tmp_path / "m", tensors, quant_config)
    assert list(ours.linear_specs) == [LAYER] and ours.tensors[f"{OTHER}.weight"].dtype == "F16"
    assert reads(ours, LAYER, weights(codes, zero, scale, runs(96, 32)))


def test_compressed_tensors_of_several_groups(tmp_path: Path) -> None:
    """A name goes before a pattern, and a pattern before a class, in whatever order they stand."""
    kinds = {LAYER: (4, 32), OTHER: (8, 64), "model.layers.2.mlp.down_proj": (3, 16)}
    quant_config = groups(
        scheme(4, 32, False, ["Linear"]),
        scheme(3, 16, False, ["re:.*down_proj"]),
        scheme(4, 32, False, [LAYER]),
        scheme(8, 64, False, ["model.layers.9.mlp.down_proj", OTHER]),
        ignore=("lm_head",),
        format="mixed-precision",
    )
    tensors: dict[str, np.ndarray] = {}
    expected: dict[str, np.ndarray] = {}
    for linear, (bits, size) in {**kinds, "model.layers.2.mlp.up_proj": (4, 32)}.items():
        codes, zero, scale = numbers(33, 64, 64 // size, bits, smallest=0)
        tensors |= compressed(linear, codes, zero, scale, bits)
        expected[linear] = weights(codes, zero, scale, runs(64, size))
    ours = folder_of(tmp_path / "m", tensors, quant_config)
    for linear, values in expected.items():
        assert reads(ours, linear, values)


def test_compressed_tensors_beside_a_group_of_floats(tmp_path: Path) -> None:
    """What a group says of other linears is no reason to refuse this one."""
    codes, zero, scale = numbers(32, 64, 2, 4)
    floats = scheme(8, None, True, ["re:.*lm_head"], type="float")
    quant_config = groups(floats, scheme(4, 32, False, ["Linear"]), format="mixed-precision")
    ours = folder_of(tmp_path / "m", compressed(LAYER, codes, zero, scale, 4), quant_config)
    assert reads(ours, LAYER, weights(codes, zero, scale, runs(64, 32)))


@pytest.mark.parametrize("layout", ["pack-quantized", "int-quantized"])
@pytest.mark.parametrize("shape", [(1,), (1, 1), (), (32,), (32, 1)])
def test_compressed_tensors_with_one_scale_a_row_or_a_tensor(
    layout: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    codes = numbers(32, 64, 1, 8)[0]
    count = 32 if 32 in shape else 1
    scale = (np.arange(1, count + 1) * 2.0**-10).astype(np.float32)
    zero = np.arange(count).astype(np.int8) - 7
    tensors = compressed(LAYER, codes, None, scale, 8)
    if layout == "int-quantized":
        tensors = {f"{LAYER}.weight": (codes - 128).astype(np.int8)}
    tensors[f"{LAYER}.weight_scale"] = scale.reshape(shape)
    tensors[f"{LAYER}.weight_zero_point"] = zero.reshape(shape)
    quant_config = groups(
        scheme(8, None, False, ["Linear"], strategy="channel" if count > 1 else "tensor"), format=layout
    )
    ours = folder_of(tmp_path / "m", tensors, quant_config)
    every = np.zeros(64, int)
    rows = np.zeros((32, 1))
    assert reads(ours, LAYER, weights(codes, rows + 128 + zero.reshape(-1, 1), rows + scale.reshape(-1, 1), every))


def test_compressed_tensors_with_signed_zero_points_in_bytes(tmp_path: Path) -> None:
    """As older files have them beside packed codes."""
    codes, zero, scale = numbers(32, 64, 2, 4)
    tensors = compressed(LAYER, codes, None, scale, 4)
    tensors[f"{LAYER}.weight_zero_point"] = (zero - 8).astype(np.int8)
    ours = folder_of(tmp_path / "m", tensors, groups(scheme(4, 32, False, ["Linear"])))
    assert reads(ours, LAYER, weights(codes, zero, scale, runs(64, 32)))


@pytest.mark.parametrize("known", [True, False])
def test_compressed_tensors_with_group_maps(known: bool, tmp_path: Path) -> None:
    """A map of -1 means that there is none."""
    codes, _, scale = numbers(32, 64, 2, 4)
    group = np.random.default_rng(0).permutation(runs(64, 32)) if known else np.full(64, -1)
    tensors = compressed(LAYER, codes, None, scale, 4) | {f"{LAYER}.weight_g_idx": group.astype(np.int32)}
    ours = folder_of(tmp_path / "m", tensors, groups(scheme(4, 32, True, ["Linear"], actorder="group")))
    assert reads(ours, LAYER, weights(codes, np.full((32, 2), 8), scale, group if known else runs(64, 32)))


def test_what_belongs_to_activations_is_no_tensor_of_the_model(tmp_path: Path) -> None:
    codes, _, scale = numbers(32, 64, 1, 8)
    tensors = {
        f"{LAYER}.weight": (codes - 128).astype(np.int8),
        f"{LAYER}.weight_scale": scale,
        f"{LAYER}.input_scale": np.ones(1, np.float32),
        f"{LAYER}.input_zero_point": np.zeros(1, np.int8),
        f"{LAYER}.bias": np.zeros(32, np.float32),
    }
    ours = folder_of(tmp_path / "m", tensors, groups(scheme(8, None, True, ["Linear"]), format="int-quantized"))
    assert set(ours.tensors) == {"model.embed_tokens.weight", f"{LAYER}.weight", f"{LAYER}.bias"}
    assert reads(ours, LAYER, weights(codes, np.full((32, 1), 128), scale, np.zeros(64, int)))


def test_a_quantized_embedding(tmp_path: Path) -> None:
    codes, zero, scale = numbers(33, 64, 2, 8)
    tensors = compressed("model.embed_tokens", codes, zero, scale, 8)
    quant_config = groups(scheme(4, None, True, ["Linear"]), scheme(8, 32, False, ["Embedding"]))
    head, _, head_scale = numbers(8, 8, 1, 4)
    tensors |= compressed("lm_head", head, None, head_scale, 4)
    ours = folder_of(tmp_path / "m", tensors, quant_config)
    assert reads(ours, "lm_head", weights(head, np.full((8, 1), 8), head_scale, np.zeros(8, int)))
    assert reads(ours, "model.embed_tokens", weights(codes, zero, scale, runs(64, 32)))


def test_scales_beyond_float16(tmp_path: Path) -> None:
    """They are read as float32, and every format that would have to round them refuses."""
    codes = numbers(32, 64, 1, 4)[0]
    scale = np.full((32, 1), 3e5, np.float32)
    scale[0] = 2.0**-30
    tensors = compressed(LAYER, codes, None, scale, 4)
    ours = folder_of(tmp_path / "m", tensors, groups(scheme(4, None, True, ["Linear"])))
    stored = torch.from_numpy(scale).bfloat16().float().numpy()
    assert reads(ours, LAYER, weights(codes, np.full((32, 1), 8), stored, np.zeros(64, int)))
    assert ours.qlinear(LAYER).scale.dtype == np.float32
    assert ours.codec is not None and "does not fit" in str(ours.codec.problem(ours.linear_specs[LAYER]))


def test_the_packing_of_these_tests() -> None:
    """Not taken from r1quant, so checked by itself: ten values of 3 bits and the beginning of the next in a word."""
    line = np.arange(32) % 8
    words = pack(line.reshape(1, -1), 3, 1)[0].view(np.uint32)
    assert len(words) == 3 and [int(words[0]) >> 3 * i & 7 for i in range(10)] == line[:10].tolist()
    assert int(words[0]) >> 30 == line[10] & 3 and int(words[1]) & 1 == line[10] >> 2

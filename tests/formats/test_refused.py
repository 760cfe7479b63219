"""Damaged, hostile and unknown checkpoints: one line what is wrong, with the name of the linear, and one what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from r1quant.checkpoint.safetensors import open_folder
from r1quant.errors import CheckpointError
from r1quant.formats.codec import CodecArtifact
from r1quant.formats.table import artifact
from tests.formats.foreign import LAYER, awq, compressed, folder_of, gptq, groups, numbers, scheme

Tensors = dict[str, Any]
Change = Callable[[Tensors, dict[str, Any]], None]
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32}
AWQ = {"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": 32}
CODES, ZERO, SCALE = numbers(32, 64, 2, 4)
GROUP = np.arange(64) // 32
EIGHT = (np.arange(32 * 64).reshape(32, 64) % 256 - 128).astype(np.int8)
SCHEME = scheme(4, 32, False, ["Linear"])


def good(kind: str) -> tuple[Tensors, dict[str, Any]]:
    """A checkpoint that is read, to be spoilt."""
    if kind == "gptq":
        return gptq(LAYER, CODES, ZERO, SCALE, GROUP, 4), dict(GPTQ)
    if kind == "awq":
        return awq(LAYER, CODES, ZERO, SCALE), dict(AWQ)
    if kind == "int":
        tensors = {f"{LAYER}.weight": EIGHT, f"{LAYER}.weight_scale": SCALE, f"{LAYER}.weight_zero_point": EIGHT[:, :2]}
        return tensors, groups({**SCHEME, "weights": {**SCHEME["weights"], "num_bits": 8}}, format="int-quantized")
    return compressed(LAYER, CODES, ZERO, SCALE, 4), groups({**SCHEME, "weights": dict(SCHEME["weights"])})


def refused(read: Callable[[], object]) -> str:
    """The message of a refusal, in one line, as is the hint."""
    with pytest.raises(CheckpointError) as error:
        read()
    assert error.value.message and error.value.hint
    assert "\n" not in str(error.value.message) and "\n" not in error.value.hint
    return error.value.message


def drop(suffix: str) -> Change:
    def change(tensors: Tensors, quant_config: dict[str, Any]) -> None:
        del tensors[f"{LAYER}.{suffix}"]

    return change


def made(suffix: str, by: Callable[[Any], Any]) -> Change:
    def change(tensors: Tensors, quant_config: dict[str, Any]) -> None:
        tensors[f"{LAYER}.{suffix}"] = by(tensors[f"{LAYER}.{suffix}"])

    return change


def put(suffix: str, value: Any) -> Change:
    return made(suffix, lambda before: value) if suffix != "weight_g_idx" else _added(suffix, value)


def _added(suffix: str, value: Any) -> Change:
    def change(tensors: Tensors, quant_config: dict[str, Any]) -> None:
        tensors[f"{LAYER}.{suffix}"] = value

    return change


def stating(without_map: bool = False, **values: Any) -> Change:
    def change(tensors: Tensors, quant_config: dict[str, Any]) -> None:
        if without_map:
            del tensors[f"{LAYER}.g_idx"]
        quant_config.update(values)
        for key in [key for key, value in quant_config.items() if value is ...]:
            del quant_config[key]

    return change


def weighing(**values: Any) -> Change:
    def change(tensors: Tensors, quant_config: dict[str, Any]) -> None:
        quant_config["config_groups"]["group_0"]["weights"].update(values)

    return change


DAMAGES: list[tuple[str, str, Change]] = [
    ("gptq", "scales is missing", drop("scales")),
    ("gptq", "qzeros is missing", drop("qzeros")),
    ("gptq", "qweight of 7 words", made("qweight", lambda t: t[:7])),
    ("gptq", "qweight of 9 words", made("qweight", lambda t: np.concatenate([t, t[:1]]))),
    ("gptq", "scales has the shape", made("qweight", lambda t: t[:, :31])),
    ("gptq", "not a matrix of I32", made("qweight", lambda t: t.reshape(-1))),
    ("gptq", "not a matrix of I32", made("qweight", lambda t: t.reshape(1, *t.shape))),
    ("gptq", "not a matrix of I32", made("qweight", lambda t: t.astype(np.int64))),
    ("gptq", "not a matrix of I32", made("qweight", lambda t: t.view(np.float32))),
    ("gptq", "not a matrix of I32", made("qweight", lambda t: t[:0])),
    ("gptq", "scales has the shape", made("scales", lambda t: t.T)),
    ("gptq", "scales is empty", made("scales", lambda t: t[:0])),
    ("gptq", "beyond the 1", made("scales", lambda t: t[:1])),
    ("gptq", "scales is float64", made("scales", lambda t: t.astype(np.float64))),
    ("gptq", "dtype F8_E4M3", made("scales", lambda t: torch.from_numpy(t).to(torch.float8_e4m3fn))),
    ("gptq", "qzeros has the shape", made("qzeros", lambda t: t[:, :3])),
    ("gptq", "qzeros has the shape", made("qzeros", lambda t: t[:1])),
    ("gptq", "qzeros is int64", made("qzeros", lambda t: t.astype(np.int64))),
    ("gptq", "does not fit the g_idx", made("g_idx", lambda t: t[:63])),
    ("gptq", "does not fit the g_idx", made("g_idx", lambda t: t[:1])),
    ("gptq", "g_idx is empty", made("g_idx", lambda t: t[:0])),
    ("gptq", "g_idx has the shape", made("g_idx", lambda t: t.reshape(2, 32))),
    ("gptq", "g_idx is float32", made("g_idx", lambda t: t.astype(np.float32))),
    ("gptq", "beyond the 2", made("g_idx", lambda t: t + 1)),
    ("gptq", "beyond the 2", made("g_idx", lambda t: t - 1)),
    ("gptq", "codes of 0 bits", stating(True, bits=...)),
    ("gptq", "codes of 0 bits", stating(True, bits=None)),
    ("gptq", "codes of 0 bits", stating(True, bits=0)),
    ("gptq", "codes of 5 bits", stating(True, bits=5)),
    ("gptq", "codes of -4 bits", stating(True, bits=-4)),
    ("gptq", "codes of 3 bits", stating(True, bits=3)),
    ("gptq", "has bits '4'", stating(True, bits="4")),
    ("gptq", "has bits True", stating(True, bits=True)),
    ("gptq", "has bits 4.0", stating(True, bits=4.0)),
    ("gptq", "do not fit 32 columns", stating(True, bits=8)),
    ("gptq", "qzeros has the shape", stating(True, bits=8, group_size=16)),
    ("gptq", "do not fit 64 columns in one group", stating(True, group_size=-1)),
    ("gptq", "do not fit 64 columns in groups of 128", stating(True, group_size=128)),
    ("gptq", "do not fit 64 columns in groups of 16", stating(True, group_size=16)),
    ("gptq", "has group_size [32]", stating(True, group_size=[32])),
    ("gptq", "no regular expression", stating(True, dynamic={"+:(": {"bits": 4}})),
    ("gptq", "has bits 'x'", stating(True, dynamic={".*": {"bits": "x"}})),
    ("awq", "scales is missing", drop("scales")),
    ("awq", "qzeros is missing", drop("qzeros")),
    ("awq", "states 8 bits", stating(bits=8)),
    ("awq", "has bits '4'", stating(bits="4")),
    ("awq", "in groups of 64", stating(group_size=64)),
    ("awq", "in one group", stating(group_size=-1)),
    ("awq", "do not fit 31 columns", made("qweight", lambda t: t[:31])),
    ("awq", "scales has the shape", made("qweight", lambda t: t[:, :3])),
    ("awq", "qzeros has the shape", made("qzeros", lambda t: t[:, :3])),
    ("awq", "not a matrix of I32", made("qweight", lambda t: t.astype(np.int16))),
    ("packed", "weight_packed is missing", drop("weight_packed")),
    ("packed", "weight_shape is missing", drop("weight_shape")),
    ("packed", "weight_shape has the shape", put("weight_shape", np.array([32, 64, 1]))),
    ("packed", "weight_shape is float32", put("weight_shape", np.array([32, 64], np.float32))),
    ("packed", "does not hold 64 x 32", put("weight_shape", np.array([64, 32]))),
    ("packed", "does not hold 32 x -64", put("weight_shape", np.array([32, -64]))),
    ("packed", "does not hold 32 x 4611686018427387904", put("weight_shape", np.array([32, 1 << 62]))),
    ("packed", "does not hold 32 x 64", made("weight_packed", lambda t: t[:, :7])),
    ("packed", "does not hold 32 x 64", made("weight_packed", lambda t: t[:31])),
    ("packed", "not a matrix of I32", made("weight_packed", lambda t: t.view(np.uint8))),
    ("packed", "weight_scale has the shape", made("weight_scale", lambda t: t[:16])),
    ("packed", "weight_scale has the shape", made("weight_scale", lambda t: t.reshape(32, 2, 1))),
    ("packed", "in groups of 32", made("weight_scale", lambda t: t[:, :1].clone())),
    ("packed", "weight_scale is int32", put("weight_scale", np.ones((32, 2), np.int32))),
    ("packed", "weight_zero_point has the shape", made("weight_zero_point", lambda t: t[:3])),
    ("packed", "weight_zero_point has the shape", put("weight_zero_point", np.zeros((32, 2), np.int32))),
    ("packed", "weight_zero_point is float32", put("weight_zero_point", np.zeros((32, 2), np.float32))),
    ("packed", "zero point of 8 does not fit 4 bits", put("weight_zero_point", np.full((32, 2), 8, np.int8))),
    ("packed", "zero point of -9 does not fit 4 bits", put("weight_zero_point", np.full((32, 2), -9, np.int8))),
    ("packed", "weight_zero_point [32, 1] does not fit", put("weight_zero_point", np.zeros((32, 1), np.int8))),
    ("packed", "weight_g_idx has the shape", put("weight_g_idx", np.zeros(63, np.int32))),
    ("packed", "beyond the 2", put("weight_g_idx", np.full(64, 2, np.int32))),
    ("packed", "no config group names it", stating(config_groups=...)),
    ("packed", "no config group names it", stating(config_groups=None)),
    ("packed", "no config group names it", stating(config_groups=["W4A16"])),
    ("packed", "no config group names it", stating(config_groups={"W4A16": ["Linear"]})),
    ("packed", "no config group names it", stating(config_groups={"a": {**SCHEME, "targets": ["re:.*q_proj"]}})),
    ("packed", "no config group names it", stating(config_groups={"a": {**SCHEME, "targets": 5}})),
    ("packed", "no config group names it", stating(config_groups={"a": {**SCHEME, "targets": [None, 5]}})),
    ("packed", "no regular expression", stating(config_groups={"a": {**SCHEME, "targets": ["re:*"]}})),
    ("packed", "has no weights", stating(config_groups={"a": {**SCHEME, "weights": None}})),
    ("packed", "of type float", weighing(type="float")),
    ("packed", "states 16 bits", weighing(num_bits=16)),
    ("packed", "states 0 bits", weighing(num_bits=None)),
    ("packed", "has num_bits '4'", weighing(num_bits="4")),
    ("packed", "does not hold 32 x 64 codes of 8 bits", weighing(num_bits=8)),
    ("packed", "in groups of 16", weighing(group_size=16)),
    ("packed", "in one group", weighing(group_size=None, strategy="channel")),
    ("int", "weight_packed is missing", drop("weight")),
    ("int", "not a matrix of I8", made("weight", lambda t: t.astype(np.float32))),
    ("int", "not a matrix of I8", made("weight", lambda t: t.reshape(-1))),
    ("int", "dtype F8_E4M3", made("weight_scale", lambda t: torch.from_numpy(t).to(torch.float8_e4m3fn))),
    ("int", "weight_zero_point has the shape [16, 4]", made("weight_zero_point", lambda t: t.reshape(16, 4))),
    ("int", "weight_scale has the shape", made("weight_scale", lambda t: t[:4])),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "reason", "change"), DAMAGES, ids=[f"{k}-{r}" for k, r, _ in DAMAGES])
def test_what_does_not_fit_is_said_of_the_linear(kind: str, reason: str, change: Change, tmp_path: Path) -> None:
    """Before the codes are read, and again when they are."""
    tensors, quant_config = good(kind)
    change(tensors, quant_config)
    ours = folder_of(tmp_path / "m", tensors, quant_config)
    for read in (lambda: ours.linear_specs, lambda: ours.tensors, lambda: ours.qlinear(LAYER)):
        message = refused(read)
        assert LAYER in message
    assert reason in refused(lambda: ours.linear_specs)


@pytest.mark.parametrize("kind", ["gptq", "awq", "packed", "int"])
def test_what_is_spoilt_here_is_read_when_it_is_not(kind: str, tmp_path: Path) -> None:
    ours = folder_of(tmp_path / "m", *good(kind))
    assert list(ours.linear_specs) == [LAYER]
    ours.qlinear(LAYER).validate()


@pytest.mark.parametrize("kind", ["gptq", "awq", "packed", "int"])
@pytest.mark.parametrize(("value", "law"), [(0.0, "scale must not be zero"), (np.inf, "finite"), (np.nan, "finite")])
def test_scales_that_are_no_scales(kind: str, value: float, law: str, tmp_path: Path) -> None:
    tensors, quant_config = good(kind)
    name = next(name for name in tensors if name.endswith(("scales", "weight_scale")))
    tensors[name] = torch.as_tensor(tensors[name]).clone()
    tensors[name][1, 1] = value
    ours = folder_of(tmp_path / "m", tensors, quant_config)
    assert law in (message := refused(lambda: ours.qlinear(LAYER))) and LAYER in message


def test_integers_that_do_not_fit_their_bits(tmp_path: Path) -> None:
    """4 bits in bytes, as naive-quantized has them."""
    tensors = {f"{LAYER}.weight": EIGHT, f"{LAYER}.weight_scale": SCALE}
    ours = folder_of(tmp_path / "m", tensors, groups(SCHEME, format="naive-quantized"))
    assert "a code of -128 does not fit 4 bits" in refused(lambda: ours.qlinear(LAYER))


def test_weights_that_are_floats(tmp_path: Path) -> None:
    """FP8 and NVFP4 linears beside integers, as mixed-precision allows."""
    floats = scheme(8, None, True, ["Linear"], type="float")
    weight = torch.ones(32, 64).to(torch.float8_e4m3fn)
    tensors = {f"{LAYER}.weight": weight, f"{LAYER}.weight_scale": np.ones((32, 1), np.float32)}
    ours = folder_of(tmp_path / "fp8", tensors, groups(floats, format="mixed-precision"))
    assert f"{LAYER}: its weights are of type float" in refused(lambda: ours.linear_specs)
    tensors = {
        f"{LAYER}.weight_packed": np.zeros((32, 32), np.uint8),
        f"{LAYER}.weight_scale": torch.ones(32, 4).to(torch.float8_e4m3fn),
        f"{LAYER}.weight_global_scale": np.ones(1, np.float32),
    }
    nvfp4 = scheme(4, 16, True, ["Linear"], type="float", strategy="tensor_group")
    ours = folder_of(tmp_path / "nvfp4", tensors, groups(nvfp4, format="mixed-precision"))
    assert LAYER in refused(lambda: ours.linear_specs)


@pytest.mark.parametrize(
    ("quant_config", "reason"),
    [
        ({"quant_method": "fp8"}, "'fp8' cannot be read"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "'modelopt' cannot be read"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "'bitsandbytes' cannot be read"),
        ({"bits": 4}, "None cannot be read"),
        ({"quant_method": ["gptq"]}, "cannot be read"),
        ({"quant_method": "awq", "version": "gemv"}, "'gemv'"),
        ({"quant_method": "awq", "format": "llm-awq"}, "'llm-awq'"),
        ({"quant_method": "gptq", "checkpoint_format": "marlin"}, "'marlin'"),
        ({"quant_method": "gptq", "format": "gptq_p"}, "'gptq_p'"),
        (groups(SCHEME, format="nvfp4-pack-quantized"), "'nvfp4-pack-quantized'"),
        (groups(SCHEME, format="float-quantized"), "'float-quantized'"),
        (groups(SCHEME, format="marlin-24"), "'marlin-24'"),
        ({"quant_method": "compressed-tensors"}, "format None"),
        ([], "not a JSON object"),
        ("gptq", "not a JSON object"),
        (4, "not a JSON object"),
    ],
)
def test_quantizations_that_are_not_read(quant_config: Any, reason: str, tmp_path: Path) -> None:
    assert reason in refused(lambda: folder_of(tmp_path / "m", good("gptq")[0], quant_config))


@pytest.mark.parametrize("kind", ["gptq", "packed", "int"])
def test_quantized_tensors_that_nothing_is_stated_of(kind: str, tmp_path: Path) -> None:
    """They would pass for floats otherwise."""
    message = refused(lambda: folder_of(tmp_path / "m", good(kind)[0], None))
    assert LAYER in message and "no quantization_config" in message


@pytest.mark.parametrize("beside", [[], "gptq", None])
def test_a_file_beside_config_json_that_states_nothing(beside: Any, tmp_path: Path) -> None:
    refused(lambda: folder_of(tmp_path / "m", good("gptq")[0], None, quantize_config=beside))


@pytest.mark.parametrize("quant_config", [GPTQ, AWQ, groups(SCHEME)])
def test_a_statement_without_quantized_tensors(quant_config: dict[str, Any], tmp_path: Path) -> None:
    ours = folder_of(tmp_path / "m", {f"{LAYER}.weight": np.ones((4, 4), np.float16)}, quant_config)
    for read in (lambda: ours.linear_specs, lambda: ours.tensors, lambda: ours.read(f"{LAYER}.weight")):
        assert "no tensor is called" in refused(read)


@pytest.mark.parametrize("name", ["qweight", ".qweight", "scales"])
def test_names_that_are_no_names_of_linears(name: str, tmp_path: Path) -> None:
    """A tensor called like the suffix alone belongs to no linear; one without a linear's name is refused or ignored."""
    tensors, quant_config = good("gptq")
    ours = folder_of(tmp_path / "m", {**tensors, name: np.ones((4, 4), np.int32)}, quant_config)
    if name == ".qweight":
        refused(lambda: ours.linear_specs)
    else:
        assert list(ours.linear_specs) == [LAYER] and name in ours.tensors


def test_a_linear_that_is_not_there(tmp_path: Path) -> None:
    ours = folder_of(tmp_path / "m", *good("gptq"))
    assert "model.norm is not quantized" in refused(lambda: ours.qlinear("model.norm"))
    assert "missing" in refused(lambda: ours.read("model.norm.weight"))


def test_a_file_that_ends_too_early(tmp_path: Path) -> None:
    """Cut after it was opened, as when a download is replaced."""
    ours = folder_of(tmp_path / "m", *good("gptq"))
    path = tmp_path / "m" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-3000])
    refused(lambda: [ours.qlinear(LAYER), ours.read("model.embed_tokens.weight")])
    assert "truncated" in refused(lambda: open_folder(tmp_path / "m"))


def test_a_configuration_that_is_no_json(tmp_path: Path) -> None:
    ours = folder_of(tmp_path / "m", *good("gptq"))
    assert isinstance(ours, CodecArtifact)
    (tmp_path / "m" / "quantize_config.json").write_text("{")
    values = json.loads((tmp_path / "m" / "config.json").read_text())
    del values["quantization_config"]
    (tmp_path / "m" / "config.json").write_text(json.dumps(values))
    assert "not valid JSON" in refused(lambda: artifact(open_folder(tmp_path / "m")))

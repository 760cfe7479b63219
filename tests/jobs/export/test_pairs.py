"""One quantization in every format: every pair holds the same weights, and what cannot be held is refused."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import r1quant
from r1quant.core.qlinear import QLinear
from r1quant.errors import CheckpointError, RecipeError
from r1quant.jobs.artifacts import open_artifact
from tests import models

ALL = ("gptq", "gptq-v2", "awq", "compressed-tensors", "onnx", "gguf")
MODELS = ("llama", "qwen2", "qwen3", "mistral")


def quantized(folder: Path, model_type: str, tied: bool = False, **options: Any) -> Path:
    """A tiny model, rounded to nearest in groups of 32."""
    model = models.write_model(folder / "model", model_type, tied=tied)
    chosen: dict[str, Any] = {"method": "rtn", "group_size": 32, "bits": 4} | options
    r1quant.quantize(model, folder / "quantized", **chosen)
    return folder / "quantized"


def everywhere(source: Path, formats: tuple[str, ...], folder: Path) -> dict[str, Path]:
    done = r1quant.export(source, formats, folder)
    assert all(written.as_dict()["exact"] for written in done.written)
    return {written.format: written.path for written in done.written}


@pytest.mark.parametrize("model_type", MODELS)
def test_every_pair_is_identical(tmp_path: Path, model_type: str) -> None:
    source = quantized(tmp_path, model_type, tied=model_type in ("llama", "qwen3"))
    places = everywhere(source, ALL, tmp_path)
    places["onnx qdq"] = r1quant.export(source, "onnx", tmp_path / "qdq", style="qdq").written[0].path
    for a, b in itertools.combinations(places.values(), 2):
        found = r1quant.check(a, b).as_dict()
        assert found["identical"], (a, b, found["first_difference"], found["only_in_one"])
        assert found["linears"] == 14 and found["tensors"] >= 14 + 6


@pytest.mark.parametrize(("bits", "symmetric"), [(4, False), (8, True), (8, False), (3, True), (2, False)])
def test_other_grids(tmp_path: Path, bits: int, symmetric: bool) -> None:
    source = quantized(tmp_path, "qwen3", bits=bits, symmetric=symmetric, format="compressed-tensors")
    held = r1quant.plan(
        tmp_path / "model", method="rtn", group_size=32, bits=bits, symmetric=symmetric, format="compressed-tensors"
    ).as_dict()["formats"]
    for name in (*ALL, "compressed-tensors-int"):
        try:
            path = r1quant.export(source, name, tmp_path / name).written[0].path
        except RecipeError as error:
            assert held[name], f"{name}: {error.message}, but the plan said it could"
            assert not (tmp_path / name).exists()
        else:
            assert r1quant.check(source, path).identical
    asked = {"awq": bits == 4, "compressed-tensors-int": bits == 8, "gguf": bits != 8 or symmetric}
    for name, can in asked.items():
        assert (tmp_path / name).exists() == can, name


def test_a_zero_point_of_zero(tmp_path: Path) -> None:
    """All weights positive, so that the zero point is 0: GPTQ version 1 refuses, and says who can."""
    model = models.write_model(tmp_path / "model", "llama")
    tensors = load_file(model / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].abs() + 1
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    out = tmp_path / "awq"
    r1quant.quantize(model, out, method="rtn", group_size=32, symmetric=False, format="awq")
    assert open_artifact(out).linear_specs[name.removesuffix(".weight")].zeros[0] == 0
    with pytest.raises(RecipeError, match=r"model.layers.1.mlp.up_proj: a zero point is 0") as refused:
        r1quant.export(out, ("onnx", "gptq"), tmp_path)
    assert "gptq-v2" in refused.value.hint
    assert not (tmp_path / "awq-onnx").exists(), "nothing may be written where one format refuses"
    for written in everywhere(out, ("gptq-v2", "compressed-tensors", "onnx", "gguf"), tmp_path).values():
        assert r1quant.check(out, written).identical


def test_there_and_back(tmp_path: Path) -> None:
    """GGUF and ONNX are sources too: their integers come back as GPTQ with the weights that went in."""
    source = quantized(tmp_path, "llama")
    for name in ("onnx", "gguf", "awq"):
        first = r1quant.export(source, name, tmp_path / name).written[0].path
        back = r1quant.export(first, "gptq", tmp_path / f"{name}-back").written[0].path
        assert r1quant.check(source, back).identical
        assert len(open_artifact(back).linear_specs) == 14


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_float_models_are_converted_without_rounding(tmp_path: Path, dtype: str) -> None:
    model = models.write_model(tmp_path / "model", "qwen3", dtype=dtype)
    places = everywhere(model, ("gguf", "onnx", "safetensors"), tmp_path)
    for path in places.values():
        assert r1quant.check(model, path).identical
    again = r1quant.export(places["gguf"], "safetensors", tmp_path / "again").written[0].path
    assert r1quant.check(model, again).identical
    assert (again / "tokenizer.json").is_file()


def test_what_is_rounded_is_said(tmp_path: Path) -> None:
    source = quantized(tmp_path, "llama")
    halves = r1quant.export(source, "safetensors", tmp_path / "halves", dtype="bfloat16").written[0]
    exact = r1quant.export(source, "safetensors", tmp_path / "exact", dtype="float32").written[0]
    small = r1quant.export(source, "gguf", tmp_path / "small", embedding="q8_0", head="q8_0").written[0]
    assert not exact.inexact and r1quant.check(source, exact.path).identical
    for written, names in ((halves, None), (small, {"model.embed_tokens.weight", "lm_head.weight"})):
        found = r1quant.check(source, written.path).as_dict()
        assert {difference["tensor"] for difference in found["differing"]} <= set(written.inexact)
        assert names is None or set(written.inexact) == names
        assert written.inexact and not written.as_dict()["exact"]
    assert r1quant.check(source, small.path).as_dict()["linears_identical"]


def test_the_first_difference_is_named(tmp_path: Path) -> None:
    source = quantized(tmp_path, "llama")
    other = r1quant.export(source, "awq", tmp_path / "awq").written[0].path
    artifact = open_artifact(source)
    linear = "model.layers.1.self_attn.o_proj"
    q = artifact.qlinear(linear)
    assert isinstance(q, QLinear)
    path = next(source.glob("*.safetensors"))
    weights = load_file(path)
    weights[f"{linear}.qweight"][2, 5] ^= 1 << 8  # the third code of the third word of column 5, by its lowest bit
    save_file(weights, path, {"format": "pt"})
    found = r1quant.check(source, other).as_dict()
    difference = found["first_difference"]
    assert not found["identical"] and len(found["differing"]) == 1
    assert difference["tensor"] == f"{linear}.weight" and difference["index"] == [5, 2 * 8 + 2]
    assert difference["differing"] == 1
    assert difference["largest"] == pytest.approx(abs(float(q.scale[5, 0])))


def test_other_models_are_refused(tmp_path: Path) -> None:
    a = models.write_model(tmp_path / "a", "llama")
    b = models.write_model(tmp_path / "b", "llama", intermediate_size=128)
    with pytest.raises(CheckpointError, match="intermediate_size is 96 in"):
        r1quant.check(a, b)


@pytest.mark.parametrize("name", ["awq", "compressed-tensors", "onnx", "gguf"])
def test_what_was_exported_can_be_verified(tmp_path: Path, text_file: Path, name: str) -> None:
    """verify finds the float model through the record, and measures the same, whatever the format."""
    source = quantized(tmp_path, "llama")
    path = r1quant.export(source, name, tmp_path / name).written[0].path
    expected, found = (
        r1quant.verify(place, text=str(text_file), windows=2, seq_len=32).as_dict() for place in (source, path)
    )
    assert found["kl"] == expected["kl"] and found["perplexity"] == expected["perplexity"]


@pytest.mark.parametrize(("name", "backend"), [("onnx", "onnxruntime"), ("gguf", "llamacpp")])
def test_backends_agree_and_catch_a_wrong_scale(tmp_path: Path, text_file: Path, name: str, backend: str) -> None:
    """Run by its own runtime an export measures what torch measures; one linear with doubled scales does not."""
    if backend == "llamacpp":
        pytest.importorskip("llama_cpp", reason="llama-cpp-python takes long to build, so it is not needed here")
    source = quantized(tmp_path, "llama", bits=8)
    weights = load_file(source / "model.safetensors")
    measured: dict[str, Any] = {"text": str(text_file), "windows": 3, "seq_len": 48, "gate": ("kl.mean<0.005",)}
    expected = r1quant.verify(source, **measured)
    path = r1quant.export(source, name, tmp_path / name).written[0].path
    found = r1quant.verify(path, backend="auto", **measured)
    assert found.backend == backend and expected.passed and found.passed
    assert found.numbers()["kl.mean"] == pytest.approx(expected.numbers()["kl.mean"], abs=1e-3)
    weights["model.layers.1.self_attn.o_proj.scales"] *= 2
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    damaged = r1quant.export(source, name, tmp_path / "damaged").written[0].path
    for place, ran in ((source, "torch"), (damaged, backend)):
        assert not r1quant.verify(place, backend=ran, **measured).passed


def test_a_backend_for_another_format(tmp_path: Path) -> None:
    source = quantized(tmp_path, "llama")
    for backend, to in (("onnxruntime", "onnx"), ("llamacpp", "gguf")):
        with pytest.raises(RecipeError, match=f"{backend} does not run gptq") as refused:
            r1quant.verify(source, backend=backend, windows=1, seq_len=16)
        assert f"--to {to}" in refused.value.hint
    with pytest.raises(RecipeError, match="backend 'cuda' is not supported"):
        r1quant.verify(source, backend="cuda", windows=1, seq_len=16)

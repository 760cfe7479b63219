"""Folders that we wrote: what is read from them whole, by rows and in pieces agrees, in one file or in several."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file

import r1quant
from r1quant.checkpoint import artifact as artifacts
from r1quant.checkpoint.artifact import LinearSpec, quantized, rows
from r1quant.checkpoint.safetensors import open_folder
from r1quant.core.floats import widen
from r1quant.formats.codec import CodecArtifact
from r1quant.formats.table import CODECS, artifact
from r1quant.planning import layout
from tests.models import write_model

KINDS = (
    ("gptq", 4, 32, True),
    ("gptq", 3, 32, False),
    ("gptq-v2", 2, 16, False),
    ("awq", 4, 32, False),
    ("compressed-tensors", 3, 32, False),
    ("compressed-tensors", 8, -1, True),
    ("compressed-tensors-int", 8, 32, False),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With biases, and a head of its own."""
    return write_model(tmp_path_factory.mktemp("written") / "qwen2", "qwen2")


def quantize(model: Path, out: Path, kind: tuple[str, int, int, bool]) -> CodecArtifact:
    name, bits, size, symmetric = kind
    r1quant.quantize(model, out, bits=bits, group_size=size, symmetric=symmetric, method="rtn", format=name)
    return artifact(open_folder(out))


def whole(ours: CodecArtifact, name: str) -> npt.NDArray[np.float32]:
    found: npt.NDArray[np.float32] = ours.read(name).float().numpy()
    return found


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_folder_is_the_model_in_another_form(
    kind: tuple[str, int, int, bool], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "SHARD_LIMIT", 30_000)
    monkeypatch.setattr(artifacts, "ROWS_LIMIT", 1000)
    ours = quantize(model, tmp_path / "out", kind)
    assert len(ours.checkpoint.files) > 2
    before = artifact(open_folder(model))
    assert (before.codec, dict(before.linear_specs)) == (None, {})
    assert ours.format == kind[0] and before.format == "safetensors"
    assert {n: s.shape for n, s in ours.tensors.items()} == {n: s.shape for n, s in before.tensors.items()}
    assert ours.linear_specs.keys() == {n.removesuffix(".weight") for n in before.tensors if n.endswith("_proj.weight")}
    for name, spec in ours.tensors.items():
        linear = quantized(ours, name)
        values = whole(ours, name)
        assert values.shape == spec.shape
        for multiple in (1, 7):
            pieces = list(rows(ours, name, multiple))
            assert all(len(piece) % multiple == 0 for piece in pieces[:-1])
            assert np.array_equal(np.concatenate(pieces), values)
        if linear is not None:
            q = ours.qlinear(linear)
            assert ours.linear_specs[linear] == LinearSpec.of(q) and spec.dtype == "F32"
            assert q.bits == kind[1] and q.symmetric == kind[3]
            assert np.array_equal(q.dequantize(), values)
        else:
            assert spec == before.tensors[name]
            raw = np.concatenate(list(ours.chunks(name)))
            assert np.array_equal(widen(raw, spec.dtype), values.reshape(-1))
            assert np.array_equal(values, whole(before, name))


def test_one_file_or_several_hold_the_same(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = quantize(model, tmp_path / "one", KINDS[0])
    monkeypatch.setattr(layout, "SHARD_LIMIT", 20_000)
    several = quantize(model, tmp_path / "several", KINDS[0])
    assert len(one.checkpoint.files) == 1 < len(several.checkpoint.files)
    assert one.tensors == several.tensors and one.linear_specs == several.linear_specs
    for name in one.checkpoint.tensors:
        assert one.checkpoint.read(name).equal(several.checkpoint.read(name))


def test_every_format_holds_the_same_weights(model: Path, tmp_path: Path) -> None:
    """One recipe that all of them hold."""
    found = {
        name: quantize(model, tmp_path / name, (name, 4, 32, True)) for name in CODECS if not name.endswith("-int")
    }
    first, *others = found.values()
    for other in others:
        assert other.linear_specs == first.linear_specs
        assert all(np.array_equal(whole(other, name), whole(first, name)) for name in first.tensors)


@pytest.mark.parametrize("name", ["gptq", "gptq-v2", "awq"])
def test_the_configuration_stands_where_readers_look(name: str, model: Path, tmp_path: Path) -> None:
    quantize(model, tmp_path / "out", (name, 4, 32, True))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    quant_config = config.pop("quantization_config")
    assert config == json.loads((model / "config.json").read_text())
    assert quant_config["quant_method"] == name.removesuffix("-v2")
    if name == "awq":
        beside = json.loads((tmp_path / "out" / "quant_config.json").read_text())
        assert (beside["w_bit"], beside["q_group_size"]) == (quant_config["bits"], quant_config["group_size"])
    else:
        assert json.loads((tmp_path / "out" / "quantize_config.json").read_text()) == quant_config


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_linear_that_needs_less_than_the_others_is_stored_as_they_are(symmetric: bool, tmp_path: Path) -> None:
    """Scales of few bits in a run with float16 scales, and zero points all in the middle in an asymmetric one."""
    folder = write_model(tmp_path / "model", "llama", dtype="float32")
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = (torch.arange(tensors[name].numel()) % 16 - 8).float().reshape(tensors[name].shape)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    for kind in ("compressed-tensors", "gptq-v2"):
        out = tmp_path / kind
        r1quant.quantize(
            folder, out, group_size=32, symmetric=symmetric, scale_dtype="float16", method="rtn", format=kind
        )
        ours = artifact(open_folder(out))
        q = ours.qlinear(name.removesuffix(".weight"))
        assert q.symmetric and np.array_equal(np.unique(q.scale), [1.0])
        assert np.array_equal(q.dequantize(), tensors[name].numpy())

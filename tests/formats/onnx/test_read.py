"""What was written is read back bit for bit, and a file that was tampered with is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from r1quant.arch.tables import architecture_of
from r1quant.errors import CheckpointError
from r1quant.formats.onnx.options import OnnxOptions
from r1quant.formats.onnx.read import open_onnx
from r1quant.formats.onnx.weights import Q8_BLOCK
from r1quant.formats.onnx.writer import write
from tests.formats.onnx.memory import Memory, decoder
from tests.laws.linears import same

KINDS = ((4, 32, True), (3, -1, True), (2, 16, False), (8, 32, True), (8, -1, False), (4, -1, False))


def written(folder: Path, artifact: Memory, **options: Any) -> Path:
    folder.mkdir(exist_ok=True)
    write(artifact, architecture_of(artifact.config), folder, OnnxOptions(**options))
    return folder


@pytest.mark.parametrize("options", [{}, {"accuracy_level": 4, "zero_points": True}, {"style": "qdq"}], ids=str)
@pytest.mark.parametrize(("bits", "group_size", "symmetric"), KINDS)
def test_everything_comes_back(
    tmp_path: Path, bits: int, group_size: int, symmetric: bool, options: dict[str, Any]
) -> None:
    artifact = decoder("qwen2", bits, group_size, symmetric=symmetric)
    back = open_onnx(written(tmp_path, artifact, **options))
    assert back.format == "onnx" and dict(back.config) == dict(artifact.config)
    assert dict(back.side_files) == dict(artifact.side_files)
    assert dict(back.linear_specs) == dict(artifact.linear_specs)
    assert {n: s.shape for n, s in back.tensors.items()} == {n: s.shape for n, s in artifact.tensors.items()}
    for name, q in artifact.linears.items():
        assert same(back.qlinear(name), q)
        assert np.array_equal(back.read(f"{name}.weight").numpy(), q.dequantize())
    for name, array in artifact.floats.items():
        assert np.array_equal(back.read(name).numpy(), array)
        raw = np.concatenate(list(back.chunks(name)))
        assert back.tensors[name].dtype == "F32" and np.array_equal(raw.view(np.float32), array.reshape(-1))


def test_a_float_model_comes_back(tmp_path: Path) -> None:
    artifact = decoder("llama", 0, tied=True)
    back = open_onnx(written(tmp_path, artifact, dtype="float16") / "model.onnx")
    assert not back.linear_specs and {spec.dtype for spec in back.tensors.values()} == {"F16"}
    for name, array in artifact.floats.items():
        np.testing.assert_array_equal(back.read(name).numpy(), array.astype(np.float16))


@pytest.mark.parametrize("hidden", [64, 80])
def test_8_bit_tensors_are_read_as_the_floats_they_stand_for(tmp_path: Path, hidden: int) -> None:
    artifact = decoder("llama", 4, 16, hidden_size=hidden, head_dim=16)
    back = open_onnx(written(tmp_path, artifact, embedding="q8"))
    name = "model.embed_tokens.weight"
    assert set(back.tensors) == set(artifact.tensors) and set(back.places.inexact) == {name}
    values, original = back.read(name).numpy(), artifact.floats[name]
    steps = np.repeat(np.abs(original).max(1, keepdims=True) / 127, hidden, axis=1)
    assert values.shape == original.shape
    assert (np.abs(values - original) <= steps / 2 * 1.001).all()
    first = original[:, :Q8_BLOCK]
    scale = np.abs(first).max(1, keepdims=True) / np.float32(127)
    np.testing.assert_array_equal(values[:, :Q8_BLOCK], np.rint(first / scale) * scale)


def tampered(folder: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    path = folder / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())
    return folder


def place(**changes: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        tensor = next(t for t in model.graph.initializer if t.name.endswith("qweight"))
        for entry in tensor.external_data:
            entry.value = changes.get(entry.key, entry.value)

    return change


def about(change: Callable[[dict[str, Any]], Any]) -> Callable[[onnx.ModelProto], None]:
    def apply(model: onnx.ModelProto) -> None:
        content = json.loads(model.metadata_props[0].value)
        model.metadata_props[0].value = json.dumps(change(content) or content)

    return apply


def linear(**changes: Any) -> Callable[[onnx.ModelProto], None]:
    return about(lambda content: next(iter(content["linears"].values())).update(changes))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (place(location="../model.onnx.data"), "names"),
        (place(location="/etc/passwd"), "names"),
        (place(offset="99999999999"), "place"),
        (place(offset="-4096"), "place"),
        (place(length="12"), "place"),
        (place(length="1e3"), "place"),
        (lambda model: model.graph.initializer[-1].dims.append(1 << 50), "place"),
        (lambda model: model.metadata_props.pop(), "another program"),
        (about(lambda content: {"schema": "r1quant.onnx/9"}), "version"),
        (about(lambda content: content.update(linears=[])), "version"),
        (linear(bits=64), "not valid"),
        (linear(bits=True), "not valid"),
        (linear(shape=[1 << 40, 64]), "not valid"),
        (linear(shape=[128]), "not valid"),
        (linear(row=-1), "not valid"),
        (linear(row=1 << 30), "not valid"),
        (linear(group_size=0), "not valid"),
        (linear(block=0), "not valid"),
        (linear(planes=2), "not valid"),
        (linear(style="other"), "not valid"),
        (linear(**{"in": "cos_cache"}), "not valid"),
        (linear(**{"in": ["x"]}), "not valid"),
        (linear(unknown=1), "not valid"),
    ],
)
def test_a_tampered_model_is_refused(tmp_path: Path, change: Callable[[onnx.ModelProto], None], word: str) -> None:
    folder = written(tmp_path / "model", decoder("llama"))
    open_onnx(tampered(folder, lambda model: None))
    with pytest.raises(CheckpointError, match=word) as caught:
        open_onnx(tampered(folder, change))
    assert caught.value.hint


def test_damaged_numbers_are_said_with_the_name_of_the_linear(tmp_path: Path) -> None:
    artifact = decoder("llama", 3, -1)
    folder = written(tmp_path, artifact)
    back = open_onnx(folder)
    name = "model.layers.1.mlp.down_proj"
    outside = back.places.outside[f"{name}.scales"]
    codes = back.places.outside[f"{name}.qweight"]
    raw = bytearray((folder / "model.onnx.data").read_bytes())
    kept = bytes(raw)
    raw[outside.offset : outside.offset + 4] = np.float32(0.25).tobytes()
    (folder / "model.onnx.data").write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"down_proj: the blocks of one group differ in their scale"):
        open_onnx(folder).qlinear(name)
    raw = bytearray(kept)
    raw[codes.offset] = 0x01
    (folder / "model.onnx.data").write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"down_proj: a code does not fit 3 bits"):
        open_onnx(folder).qlinear(name)


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"{}"])
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    folder = written(tmp_path / "model", decoder("llama"))
    (folder / "model.onnx").write_bytes(content)
    with pytest.raises(CheckpointError):
        open_onnx(folder)
    (folder / "model.onnx").unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_onnx(folder)


@pytest.mark.parametrize("layers", [10**9, 0, -1, True, "2", None])
def test_a_layer_count_that_cannot_be_is_refused(tmp_path: Path, layers: Any) -> None:
    """A config.json is all it takes: names of a thousand million layers would fill the memory."""
    artifact = decoder("llama", tied=True)
    folder = written(tmp_path, artifact)
    (folder / "config.json").write_text(json.dumps({**artifact.config, "num_hidden_layers": layers}), "utf-8")
    with pytest.raises(CheckpointError, match="num_hidden_layers") as caught:
        open_onnx(folder)
    assert caught.value.hint


def test_unknown_tensors_and_linears_are_refused(tmp_path: Path) -> None:
    back = open_onnx(written(tmp_path, decoder("llama")))
    for call in (back.read, back.qlinear, lambda name: list(back.chunks(name))):
        with pytest.raises(CheckpointError, match=r"cos_cache"):
            call("cos_cache")

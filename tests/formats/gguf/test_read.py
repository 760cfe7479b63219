"""GGUF files as artifacts: the same numbers, integers and tokens that were written, whole or in parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

import r1quant
from r1quant.arch.tables import architecture_of
from r1quant.checkpoint.artifact import Artifact, rows
from r1quant.checkpoint.gguf.source import open_gguf
from r1quant.checkpoint.tokenizer import Tokenizer
from r1quant.core.blocklinear import BlockLinear
from r1quant.core.qlinear import QLinear
from r1quant.errors import CheckpointError, RecipeError
from r1quant.formats.gguf.options import GgufOptions
from r1quant.formats.gguf.read import GgufArtifact, open_gguf_artifact
from r1quant.formats.gguf.write import write
from r1quant.jobs.artifacts import open_artifact
from tests.checkpoint import gguf_files
from tests.models import MODEL_TYPES, text, write_model

from .blocklinears import same
from .held import WIDE, Held, floats, in_blocks, quantized

TEXTS = (
    text(12), "What is 12 + 35? I've 3 apples,\n\n  and\tyou don't.", "ünïcödé 你好, мир — 1234567 ½ ²",
    "<think>\nWait.</think><|end|><|begin|> <|user|>x", "", " ", "\n", "e\u0301 \u00e9 \U0001f680",
)  # fmt: skip


def export(artifact: Artifact, path: Path, **options: Any) -> GgufArtifact:
    done = write(artifact, architecture_of(artifact.config), path, GgufOptions(**options))
    return open_gguf_artifact(done.paths[0])


def check_same(one: Artifact, other: Artifact) -> None:
    """Every tensor has the same numbers, bit for bit."""
    assert set(one.tensors) == set(other.tensors)
    for name, spec in one.tensors.items():
        a, b = one.read(name).float(), other.read(name).float()
        assert other.tensors[name].shape == spec.shape == tuple(b.shape)
        pieces = np.concatenate([piece.reshape(-1) for piece in rows(other, name)])
        if one.config["model_type"] == "gemma3_text" and name.endswith("norm.weight"):
            a, b, pieces = a + 1, b + 1, pieces + 1  # as the model uses them: the file has this sum
        assert torch.equal(a.view(torch.int32), b.view(torch.int32)), name
        assert np.array_equal(pieces, a.numpy().reshape(-1)), name


def stored_in(path: Path) -> dict[str, tuple[Any, bytes]]:
    """Type and bytes of every tensor."""
    return {t.name: (t.tensor_type, t.data.tobytes()) for t in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_float_model_comes_back(tmp_path: Path, model_type: str, dtype: str) -> None:
    artifact = floats(write_model(tmp_path / "a", model_type, dtype=dtype, tied=model_type == "qwen2"))
    back = export(artifact, tmp_path / "m.gguf")
    assert back.format == "gguf" and not back.linear_specs
    check_same(artifact, back)
    matrices = {spec.dtype for spec in back.tensors.values() if len(spec.shape) == 2}
    assert matrices == {{"bfloat16": "BF16", "float16": "F16", "float32": "F32"}[dtype]}
    for name, spec in back.tensors.items():
        assert sum(piece.nbytes for piece in back.chunks(name)) == spec.nbytes
    for key in ("hidden_size", "num_hidden_layers", "num_key_value_heads", "vocab_size", "rms_norm_eps", "rope_theta"):
        assert back.config[key] == artifact.config[key], key
    assert architecture_of(back.config).gguf == architecture_of(artifact.config).gguf


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize(
    ("grid", "bits", "zero"),
    [
        ({"bits": 4, "group_size": 64}, 4, 8), ({"bits": 2, "symmetric": False}, 4, 8),
        ({"bits": 4, "symmetric": False}, 5, 16), ({"bits": 8, "group_size": -1}, 8, 128),
    ],
)  # fmt: skip
def test_a_quantized_model_comes_back_as_integers(
    tmp_path: Path, model_type: str, grid: dict[str, Any], bits: int, zero: int
) -> None:
    artifact = quantized(write_model(tmp_path / "a", model_type), **grid)
    back = export(artifact, tmp_path / "m.gguf")
    check_same(artifact, back)
    assert set(back.linear_specs) == set(artifact.linear_specs)
    for name, spec in back.linear_specs.items():
        q = back.qlinear(name)
        assert isinstance(q, QLinear)
        q.validate()
        assert (spec.shape, spec.bits, spec.group_size, spec.zeros) == (q.shape, bits, 32, (zero, zero))
        ours = artifact.qlinear(name)
        assert np.array_equal(
            q.codes.astype(int) - zero, ours.codes.astype(int) - ours.zero.astype(int)[:, ours.group]
        ), name
    again = export(back, tmp_path / "again.gguf", name="a")
    check_same(artifact, again)
    assert stored_in(tmp_path / "m.gguf") == stored_in(tmp_path / "again.gguf")


def test_q4_1_with_whole_zero_points_is_integers(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "a", "llama")
    artifact = quantized(folder, symmetric=False, significant=7, signed=False)
    back = export(artifact, tmp_path / "m.gguf")
    assert set(back.linear_specs) == set(artifact.linear_specs)
    check_same(artifact, back)
    for name, q in artifact.linears.items():
        found = back.qlinear(name)
        assert isinstance(found, QLinear) and np.array_equal(found.zero, q.zero)
        assert back.linear_specs[name].zeros == (0, 15)


def test_q4_1_with_real_offsets_is_blocks(tmp_path: Path) -> None:
    back = export(floats(write_model(tmp_path / "a", "llama")), tmp_path / "m.gguf", type="q4_1")
    assert {spec.type for spec in back.linear_specs.values()} == {"Q4_1"} and len(back.linear_specs) == 14
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    stored = next(t for t in reader.tensors if t.name == "blk.0.ffn_up.weight")
    name = "model.layers.0.mlp.up_proj.weight"
    assert back.tensors[name].dtype == "F32"
    assert np.array_equal(back.read(name).numpy(), gguf.quants.dequantize(stored.data, stored.tensor_type))
    with pytest.raises(CheckpointError, match="is not quantized"):
        back.qlinear("model.embed_tokens")


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma3_text"])
@pytest.mark.parametrize("types", [{"v_proj": "Q6_K", "_proj": "Q4_K"}, {"o_proj": "IQ3_S", "_proj": "IQ2_XXS"}])
def test_blocks_come_back_as_they_are(tmp_path: Path, model_type: str, types: dict[str, str]) -> None:
    """And go into another file bit for bit; what other formats make of them is refused or exact."""
    scale: dict[str, Any] = {"query_pre_attn_scalar": 64} if model_type == "gemma3_text" else {}
    artifact = in_blocks(write_model(tmp_path / "a", model_type, **WIDE, **scale), types)
    back = export(artifact, tmp_path / "m.gguf")
    assert back.linear_specs == artifact.linear_specs
    check_same(artifact, back)
    for linear, q in artifact.linears.items():
        found = back.qlinear(linear)
        assert isinstance(found, BlockLinear) and same(found, q), linear
    again = export(back, tmp_path / "again.gguf", name="a")
    check_same(artifact, again)
    assert stored_in(tmp_path / "m.gguf") == stored_in(tmp_path / "again.gguf")


def test_blocks_in_every_other_format(tmp_path: Path) -> None:
    artifact = in_blocks(write_model(tmp_path / "a", "llama", **WIDE), {"v_proj": "IQ4_XS", "_proj": "Q3_K"})
    path = tmp_path / "m.gguf"
    export(artifact, path)
    folder = r1quant.export(str(path), "safetensors", tmp_path / "floats").written[0].path
    floating = open_artifact(folder)
    assert not floating.linear_specs
    check_same(artifact, floating)
    checked = r1quant.check(path, folder)
    assert checked.identical and checked.linears == 0
    described = r1quant.inspect(path)
    assert described["quantization"] == {"Q3_K": 12, "IQ4_XS": 2}
    assert described["exports"] == ["safetensors", "gguf"]
    for name, reason in (("gptq", "only onnx and gguf hold Q3_K"), ("onnx", "only gguf holds IQ4_XS blocks")):
        with pytest.raises(RecipeError, match=reason) as caught:
            r1quant.export(str(path), name, tmp_path / name)
        assert caught.value.hint == "export it --to safetensors, gguf"
    done = r1quant.export(str(path), "gguf", tmp_path / "copy.gguf").written[0]
    assert not done.inexact and r1quant.check(path, done.path).linears == 14


def test_tables_are_exact_floats(tmp_path: Path) -> None:
    """Q5_1 is no uniform grid, an embedding is no linear; neither is rounded, though quantize would see BF16."""
    arrays = gguf_files.tensors("qwen2", biases=("attn_q", "attn_k", "attn_v"))
    kinds = {
        "token_embd.weight": gguf.GGMLQuantizationType.Q8_0,
        "blk.0.ffn_up.weight": gguf.GGMLQuantizationType.Q5_1,
    }
    written = {n: gguf.quants.quantize(a, kinds[n]) if n in kinds else a for n, a in arrays.items()}
    values = gguf_files.metadata("qwen2", general__file_type=7)
    path = gguf_files.write(tmp_path / "m.gguf", "qwen2", values, written, kinds)
    artifact = open_gguf_artifact(path)
    assert {name: spec.type for name, spec in artifact.linear_specs.items()} == {"model.layers.0.mlp.up_proj": "Q5_1"}
    assert {spec.dtype for spec in artifact.tensors.values()} == {"F32"}
    for name, stored in (
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.layers.0.mlp.up_proj.weight", "blk.0.ffn_up.weight"),
    ):
        assert np.array_equal(artifact.read(name).numpy(), gguf.quants.dequantize(written[stored], kinds[stored]))
    assert {info.dtype for info in open_gguf(path).tensors.values()} == {"BF16"}


def test_a_damaged_scale_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    artifact = quantized(write_model(tmp_path / "a", "llama"))
    export(artifact, path)
    stored = open_gguf(path).stored["model.layers.1.mlp.down_proj.weight"]
    raw = bytearray(path.read_bytes())
    raw[stored.offset : stored.offset + 2] = b"\x00\x7c"
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.down_proj: a scale is not finite"):
        open_gguf_artifact(path).qlinear("model.layers.1.mlp.down_proj")


def test_a_damaged_block_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    export(in_blocks(write_model(tmp_path / "a", "llama", **WIDE), {"_proj": "Q4_K"}), path)
    raw = bytearray(path.read_bytes())
    start = open_gguf(path).stored["model.layers.1.mlp.down_proj.weight"].offset
    raw[start : start + 2] = b"\x00\x7c"
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.down_proj: a scale is not finite"):
        open_gguf_artifact(path).read("model.layers.1.mlp.down_proj.weight")


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_texts_have_the_same_tokens(tmp_path: Path, model_type: str) -> None:
    artifact = floats(write_model(tmp_path / "a", model_type))
    back = export(artifact, tmp_path / "m.gguf")
    ours = Tokenizer.from_files(artifact.side_files, "a")
    theirs = Tokenizer.from_files(back.side_files, "b")
    for line in TEXTS:
        assert theirs.encode(line) == ours.encode(line)
        assert theirs.encode(line, special=True) == ours.encode(line, special=True)
        assert theirs.decode(ours.encode(line)) == ours.decode(ours.encode(line))
    assert (theirs.bos_id, theirs.eos_id) == (ours.bos_id, ours.eos_id)
    assert theirs.template == ours.template


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Held, list[Path]]:
    monkeypatch.setattr("r1quant.formats.gguf.options.SMALLEST_PART", 1000)
    artifact = quantized(write_model(tmp_path / "a", "llama"))
    done = write(artifact, architecture_of(artifact.config), tmp_path / "m.gguf", GgufOptions(split_bytes=40_000))
    return artifact, list(done.paths)


def test_parts_are_read_whichever_is_named(parts: tuple[Held, list[Path]]) -> None:
    artifact, paths = parts
    for path in paths:
        check_same(artifact, open_gguf_artifact(path))
    checkpoint = open_gguf(paths[0])
    assert checkpoint.name == "m" and set(checkpoint.files) == set(paths)
    digests = checkpoint.survey()
    assert list(digests) == [path.name for path in checkpoint.files] and len(set(digests.values())) == len(paths)


def test_a_missing_part_is_named(parts: tuple[Held, list[Path]]) -> None:
    _, paths = parts
    paths[2].unlink()
    with pytest.raises(CheckpointError, match=f"the part {paths[2].name} of the model is missing") as caught:
        open_gguf_artifact(paths[0])
    assert caught.value.hint == f"put it beside {paths[0].name}"


def test_parts_of_other_models_are_refused(parts: tuple[Held, list[Path]]) -> None:
    _, paths = parts
    kept = paths[1].read_bytes()
    paths[1].write_bytes(paths[2].read_bytes())
    with pytest.raises(CheckpointError, match=f"{paths[1].name} is not the part that its name says"):
        open_gguf_artifact(paths[0])
    paths[1].write_bytes(kept)
    moved = paths[0].with_name("first.gguf")
    paths[0].rename(moved)
    with pytest.raises(CheckpointError, match="its name does not say which"):
        open_gguf_artifact(moved)


def test_smollm2_quantized_and_back(tmp_path: Path) -> None:
    """A real model: GGUF in, four bits by rounding, and GGUF Q4_0 out with the very weights of the GPTQ checkpoint."""
    source = gguf_files.smollm_path()
    r1quant.quantize(str(source), tmp_path / "gptq", bits=4, group_size=64, method="rtn")
    artifact = open_artifact(tmp_path / "gptq")
    back = export(artifact, tmp_path / "m.gguf")
    assert len(back.linear_specs) == 210 and {spec.bits for spec in back.linear_specs.values()} == {4}
    reader = {t.name: t for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert reader["blk.7.ffn_down.weight"].tensor_type.name == "Q4_0"
    for layer in (0, 7, 29):
        for module in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj", "mlp.down_proj"):
            name = f"model.layers.{layer}.{module}"
            ours, theirs = artifact.qlinear(name).dequantize(), back.qlinear(name).dequantize()
            assert np.array_equal(ours.view(np.uint32), theirs.view(np.uint32)), name
    down = reader["blk.7.ffn_down.weight"]
    assert np.array_equal(
        gguf.quants.dequantize(down.data, down.tensor_type),
        artifact.qlinear("model.layers.7.mlp.down_proj").dequantize(),
    )
    for name in ("model.embed_tokens.weight", "model.layers.3.input_layernorm.weight"):
        assert torch.equal(artifact.read(name).float(), back.read(name).float())
    tokenizer = Tokenizer.from_files(artifact.side_files, "a")
    again = Tokenizer.from_files(back.side_files, "b")
    for line in TEXTS:
        assert tokenizer.encode(line) == again.encode(line)
    assert json.loads(back.side_files["generation_config.json"])["eos_token_id"] == 2

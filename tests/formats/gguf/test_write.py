"""Files as they are written: against what llama.cpp's own converter made of the same models, and read by gguf."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from r1quant.arch.tables import architecture_of
from r1quant.errors import CheckpointError, NumericError, RecipeError
from r1quant.formats.gguf import targets
from r1quant.formats.gguf.options import GgufOptions
from r1quant.formats.gguf.write import write
from tests.models import MODEL_TYPES, write_model

from .held import LLAMA3, Held, export, floats, keys_of, quantized, random_linear

F32 = gguf.GGMLQuantizationType.F32
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
}  # fmt: skip
GEMMA3_NORMS = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm",
}  # fmt: skip


def types_of(path: Path) -> dict[str, str]:
    return {t.name: t.tensor_type.name for t in gguf.GGUFReader(path).tensors}


def stored_name(name: str, names: dict[str, str] = NAMES) -> str:
    """GGUF's name, written down a second time."""
    fixed = {
        "model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }  # fmt: skip
    if name in fixed:
        return fixed[name]
    _, _, layer, rest = name.split(".", 3)
    module, _, part = rest.rpartition(".")
    return f"blk.{layer}.{names[module]}.{part}"


def paired(rows: np.ndarray, heads: int) -> np.ndarray:
    """Row 2 i + j of a head is row j D / 2 + i of the checkpoint's: the two that turn together become neighbours."""
    size = len(rows) // heads
    order = [h * size + j * (size // 2) + i for h in range(heads) for i in range(size // 2) for j in range(2)]
    return rows[order]


def expected(artifact: Held, name: str) -> np.ndarray:
    values = artifact.read(name).float().numpy()
    if artifact.config["model_type"] in ("llama", "mistral"):
        if ".q_proj." in name:
            return paired(values, artifact.config["num_attention_heads"])
        if ".k_proj." in name:
            return paired(values, artifact.config["num_key_value_heads"])
    if artifact.config["model_type"] == "gemma3_text" and name.endswith("norm.weight"):
        return values + np.float32(1)
    return values


def names_of(model_type: str) -> dict[str, str]:
    return NAMES | (GEMMA3_NORMS if model_type == "gemma3_text" else {})


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_float_tensors_are_what_they_were(tmp_path: Path, model_type: str, dtype: str) -> None:
    artifact = floats(write_model(tmp_path / "a", model_type, dtype=dtype))
    done = export(artifact, tmp_path / "m.gguf")
    assert done.exact and done.paths == (tmp_path / "m.gguf",)
    assert done.nbytes == (tmp_path / "m.gguf").stat().st_size
    wanted = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}[dtype]
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    names = names_of(model_type)
    assert set(tensors) == {stored_name(name, names) for name in artifact.tensors}
    for name, spec in artifact.tensors.items():
        tensor = tensors[stored_name(name, names)]
        assert tensor.data_offset % 32 == 0
        assert tensor.shape.tolist() == list(reversed(spec.shape))  # the fastest dimension comes first
        assert tensor.tensor_type.name == (wanted if len(spec.shape) == 2 else "F32")
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(spec.shape)
        assert np.array_equal(values, expected(artifact, name)), name


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize(
    ("grid", "kind"),
    [
        ({"bits": 4}, "q4_0"), ({"bits": 4, "group_size": -1}, "q4_0"), ({"bits": 3, "symmetric": False}, "q4_0"),
        ({"bits": 4, "symmetric": False, "significant": 7, "signed": False}, "q4_1"),
        ({"bits": 4, "symmetric": False}, "q5_0"), ({"bits": 8}, "q8_0"),
    ],
)  # fmt: skip
def test_quantized_linears_are_exact(tmp_path: Path, model_type: str, grid: dict[str, Any], kind: str) -> None:
    artifact = quantized(write_model(tmp_path / "a", model_type), **grid)
    done = export(artifact, tmp_path / "m.gguf")
    assert done.exact and done.types[kind] == 14
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    for linear in artifact.linears:
        tensor = tensors[stored_name(f"{linear}.weight")]
        assert tensor.tensor_type.name == kind.upper()
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        bits, wanted = values.view(np.uint32), expected(artifact, f"{linear}.weight").view(np.uint32)
        assert np.array_equal(bits, wanted), linear


def test_each_linear_has_the_smallest_type_that_holds_it(tmp_path: Path) -> None:
    artifact = quantized(write_model(tmp_path / "a", "qwen3"))
    rng, names = np.random.default_rng(1), list(artifact.linears)
    mixed = {**artifact.linears}
    mixed[names[0]] = random_linear(rng, mixed[names[0]].shape, bits=8)
    mixed[names[1]] = random_linear(rng, mixed[names[1]].shape, symmetric=False)
    del mixed[names[2]]
    export(Held(artifact.checkpoint, mixed), tmp_path / "m.gguf")
    found = types_of(tmp_path / "m.gguf")
    assert [found[stored_name(f"{name}.weight")] for name in names[:4]] == ["Q8_0", "Q5_0", "BF16", "Q4_0"]
    assert keys_of(tmp_path / "m.gguf")["general.file_type"] == 2  # mostly Q4_0


def test_a_type_that_cannot_hold_a_linear_is_refused(tmp_path: Path) -> None:
    artifact = quantized(write_model(tmp_path / "a", "llama"), symmetric=False)
    for kind in ("q4_0", "q4_1", "f16", "bf16"):
        with pytest.raises(RecipeError, match=r"model\.layers\.\d\..*_proj cannot be written to GGUF exactly"):
            export(artifact, tmp_path / "m.gguf", type=kind)
    assert not list(tmp_path.glob("m.gguf*"))
    for kind in ("q5_0", "q8_0", "f32"):
        assert export(artifact, tmp_path / f"{kind}.gguf", type=kind).exact


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
@pytest.mark.parametrize("kind", ["q4_0", "q4_1", "q5_0", "q8_0"])
def test_a_float_model_is_rounded_by_ggmls_rule_where_asked(tmp_path: Path, model_type: str, kind: str) -> None:
    artifact = floats(write_model(tmp_path / "a", model_type))
    done = export(artifact, tmp_path / "m.gguf", type=kind, embedding="q8_0", head="q8_0")
    tables = {"model.embed_tokens.weight", "lm_head.weight"}
    assert set(done.rounded) == {n for n in artifact.tensors if n.endswith("_proj.weight")} | tables
    assert done.rounded["lm_head.weight"] == "rounded from BF16 to Q8_0" and not done.exact
    for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors:
        name = next(n for n in artifact.tensors if stored_name(n) == tensor.name)
        values = expected(artifact, name)
        if len(tensor.shape) == 2:
            wanted = gguf.GGMLQuantizationType.Q8_0 if name in tables else gguf.GGMLQuantizationType[kind.upper()]
            assert tensor.tensor_type == wanted
            assert np.array_equal(tensor.data, gguf.quants.quantize(values, wanted)), name


def test_what_is_rounded_to_half_is_listed(tmp_path: Path) -> None:
    artifact = floats(write_model(tmp_path / "a", "qwen3", dtype="float32"))
    done = export(artifact, tmp_path / "m.gguf", type="f16")
    assert set(types_of(tmp_path / "m.gguf").values()) == {"F16", "F32"}  # embedding and head follow the type
    assert set(done.rounded) == {name for name, spec in artifact.tensors.items() if len(spec.shape) == 2}
    for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors:
        if tensor.tensor_type != F32:
            name = next(n for n in artifact.tensors if stored_name(n) == tensor.name)
            assert np.array_equal(tensor.data, expected(artifact, name).astype(np.float16))
    wide = export(floats(write_model(tmp_path / "b", "qwen3")), tmp_path / "w.gguf", type="f32")
    assert wide.exact and set(wide.types) == {"f32"} and keys_of(tmp_path / "w.gguf")["general.file_type"] == 0
    kept = export(artifact, tmp_path / "k.gguf", type="f16", embedding="exact", head="exact")
    assert not set(kept.rounded) & {"model.embed_tokens.weight", "lm_head.weight"}


def test_numbers_that_do_not_fit_half_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = write_model(tmp_path / "a", "qwen2")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = 70000.0
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(NumericError, match=r"layers\.1\.mlp\.up_proj\.weight holds numbers that are too large for F16"):
        export(floats(folder), tmp_path / "m.gguf", type="f16")
    assert not list(tmp_path.glob("m.gguf*"))


def test_a_tied_head_is_left_out(tmp_path: Path) -> None:
    artifact = floats(write_model(tmp_path / "a", "llama", tied=True))
    export(artifact, tmp_path / "m.gguf")
    assert "output.weight" not in types_of(tmp_path / "m.gguf")
    untied = floats(write_model(tmp_path / "b", "llama"))
    claimed = Held(untied.checkpoint, {}, {"tie_word_embeddings": True})
    export(claimed, tmp_path / "c.gguf")
    assert "output.weight" not in types_of(tmp_path / "c.gguf")


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    digests = set()
    for folder in ("a", "b"):
        artifact = quantized(write_model(tmp_path / folder, "qwen3"))
        export(artifact, tmp_path / f"{folder}.gguf", name="one")
        digests.add(hashlib.sha256((tmp_path / f"{folder}.gguf").read_bytes()).hexdigest())
    assert len(digests) == 1


def test_parts_are_named_and_numbered_as_llama_cpp_wants_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = quantized(write_model(tmp_path / "a", "llama", rope_scaling=LLAMA3))
    whole = export(artifact, tmp_path / "whole.gguf")
    limit = 30_000
    monkeypatch.setattr("r1quant.formats.gguf.options.SMALLEST_PART", limit)
    done = export(artifact, tmp_path / "m.gguf", split_bytes=limit)
    count = len(done.paths)
    assert count > 3
    assert [p.name for p in done.paths] == [f"m-{n + 1:05d}-of-{count:05d}.gguf" for n in range(count)]
    assert done.nbytes == sum(path.stat().st_size for path in done.paths)
    together: dict[str, bytes] = {}
    for number, path in enumerate(done.paths):
        found = keys_of(path)
        assert (found["split.no"], found["split.count"]) == (number, count)
        assert found["split.tensors.count"] == len(gguf.GGUFReader(whole.paths[0]).tensors)
        assert ("general.architecture" in found) == (number == 0)
        types = {key: [kind.name for kind in gguf.GGUFReader(path).fields[key].types] for key in found}
        assert types["split.no"] == types["split.count"] == ["UINT16"] and types["split.tensors.count"] == ["INT32"]
        tensors = gguf.GGUFReader(path).tensors
        named = [t for t in tensors if t.name != "rope_freqs.weight"]
        assert sum(t.n_bytes for t in named) <= limit or len(named) == 1
        together |= {t.name: t.data.tobytes() for t in tensors}
    assert together == {t.name: t.data.tobytes() for t in gguf.GGUFReader(whole.paths[0]).tensors}


def test_nothing_is_left_where_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = quantized(write_model(tmp_path / "a", "qwen3"))
    monkeypatch.setattr("r1quant.formats.gguf.options.SMALLEST_PART", 1000)
    written = 0

    def step(count: int) -> None:
        nonlocal written
        written += count
        if written > 60_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        arch = architecture_of(artifact.config)
        write(artifact, arch, tmp_path / "m.gguf", GgufOptions(split_bytes=30_000), step)
    assert {path.name for path in tmp_path.iterdir()} == {"a"}


def test_steps_add_up_to_the_tensors(tmp_path: Path) -> None:
    artifact = quantized(write_model(tmp_path / "a", "qwen3"))
    arch = architecture_of(artifact.config)
    steps: list[int] = []
    write(artifact, arch, tmp_path / "m.gguf", GgufOptions(), steps.append)
    assert sum(steps) == sum(target.entry.nbytes for target in targets.plan(artifact, arch, GgufOptions()))


def test_models_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    held = floats(write_model(tmp_path / "a", "llama"))

    def refused(message: str, **changes: Any) -> None:
        with pytest.raises(CheckpointError, match=message) as caught:
            export(Held(held.checkpoint, {}, changes), tmp_path / "m.gguf")
        assert caught.value.hint

    refused("tensor model.layers.2.input_layernorm.weight is missing", num_hidden_layers=3)
    refused("layers.1.* has no place in LlamaForCausalLM", num_hidden_layers=1)
    refused(r"down_proj.weight has the shape \[64, 96\], config.json implies \[64, 97\]", intermediate_size=97)
    refused("rms_norm_eps is 'small'", rms_norm_eps="small")
    refused("embedding has 300 rows|shape", vocab_size=300)
    assert not list(tmp_path.glob("m.gguf*"))


def test_columns_that_are_no_whole_blocks(tmp_path: Path) -> None:
    artifact = floats(write_model(tmp_path / "a", "llama", intermediate_size=80))
    with pytest.raises(RecipeError, match="its 80 columns are not a multiple of 32, the block of Q8_0"):
        export(artifact, tmp_path / "m.gguf", type="q8_0")
    assert export(artifact, tmp_path / "m.gguf").exact


def test_a_model_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    artifact = floats(write_model(tmp_path / "a", "llama", tokenizer=False))
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        export(artifact, tmp_path / "m.gguf")

"""Every architecture from end to end on a tiny random model, against the library's own whole model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import r1quant
from r1quant.arch.tables import architecture_of, architectures
from r1quant.checkpoint.artifact import quantized
from r1quant.checkpoint.safetensors import open_folder
from r1quant.engine.forward import Decoder
from r1quant.errors import CheckpointError
from r1quant.formats import table
from tests import independent, models

CPU = torch.device("cpu")
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama 3 rope": (
        "llama",
        {
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "llama tied": ("llama", {"tied": True}),
    "llama multi-head": ("llama", {"num_key_value_heads": 4}),
    "mistral": ("mistral", {}),
    "mistral sliding": ("mistral", {"sliding_window": 8}),
    "qwen2": ("qwen2", {}),
    "qwen2 tied": ("qwen2", {"tied": True}),
    "qwen3 yarn": ("qwen3", {}),
    "qwen3 plain": ("qwen3", {"rope_scaling": None}),
    "qwen3 float32": ("qwen3", {"dtype": "float32"}),
    "llama float16": ("llama", {"dtype": "float16"}),
    "llama sharded": ("llama", {"shards": 3}),
    "gemma3 tied": ("gemma3_text", {"tied": True, "sliding_window_pattern": 2}),
    "gemma3 linear": (
        "gemma3_text",
        {
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "num_hidden_layers": 2,
            "sliding_window_pattern": 2,
            "query_pre_attn_scalar": 24,
        },
    ),
    "gemma3 of transformers 5": (
        "gemma3_text",
        {
            "rope_theta": None,
            "rope_local_base_freq": None,
            "rope_scaling": None,
            "sliding_window_pattern": None,
            "num_hidden_layers": 2,
            "layer_types": ["full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 50000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 2000.0},
            },
        },
    ),
}


@pytest.fixture(scope="module", params=CASES, ids=[name.replace(" ", "-") for name in CASES])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model_type, options = CASES[request.param]
    return models.write_model(tmp_path_factory.mktemp("model") / "m", model_type, **options)


def test_streamed_layers_give_the_whole_models_logits(model: Path) -> None:
    checkpoint = open_folder(model)
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, 512, (3, 40)))
    with torch.inference_mode():
        expected = independent.whole_model(checkpoint)(tokens).logits
        decoder = Decoder(checkpoint, architecture_of(checkpoint.config), CPU, torch.float32, 40)
        hidden = decoder.embed(tokens)
        for index in range(len(decoder)):
            with decoder.layer(index) as layer:
                hidden = layer(hidden)
        found = decoder.head().logits(decoder.final_norm(hidden).flatten(0, 1)).view_as(expected)
    assert (found - expected).abs().max() < 1e-4


def test_quantize_and_verify(model: Path, tmp_path: Path, text_file: Path) -> None:
    source, out = open_folder(model), tmp_path / "out"
    done = r1quant.quantize(
        model, out, bits=4, group_size=32, calib=str(text_file), samples=8, seq_len=64, dtype="float32"
    )
    assert len(done.record.linears) == 7 * source.config["num_hidden_layers"]
    assert all((linear.loss or 0.0) > 0 for linear in done.record.linears)
    written = open_folder(out)
    weights = table.artifact(written)
    assert set(weights.tensors) == set(source.tensors)
    for name in weights.tensors:
        before, after = source.read(name).float(), weights.read(name).float()
        linear = quantized(weights, name)
        if linear:
            q = weights.qlinear(linear)
            q.validate()
            assert q.contiguous and q.symmetric
            assert (before - after).norm() / before.norm() < 0.25
        else:
            assert before.equal(after)
    record = r1quant.verify(out, model, str(text_file), windows=3, seq_len=48).numbers()
    from r1quant.checkpoint.tokenizer import Tokenizer
    from r1quant.data import windows

    tokens = windows.evaluation_text(str(text_file), Tokenizer.of(source), 3, 48).tokens
    expected = independent.summary(source, weights, tokens)
    assert record["kl.mean"] == pytest.approx(expected["kl"], rel=1e-4)
    assert record["perplexity.quantized"] == pytest.approx(expected["quantized"], rel=1e-4)


def test_gptq_beats_rounding_on_the_models_own_output(model: Path, tmp_path: Path, text_file: Path) -> None:
    common: dict[str, Any] = {"bits": 3, "group_size": 32, "calib": str(text_file), "dtype": "float32"}
    r1quant.quantize(model, tmp_path / "rtn", method="rtn", scale_search=False, **common)
    r1quant.quantize(model, tmp_path / "gptq", method="gptq", samples=32, seq_len=64, **common)
    kl = {
        name: r1quant.verify(tmp_path / name, model, str(text_file), windows=4, seq_len=64).numbers()["kl.mean"]
        for name in ("rtn", "gptq")
    }
    assert kl["gptq"] < kl["rtn"]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [16, 32, -1])
@pytest.mark.parametrize("symmetric", [True, False])
def test_every_grid_is_written_and_read_back(
    tmp_path: Path, llama: Path, bits: int, group_size: int, symmetric: bool
) -> None:
    out = tmp_path / "out"
    done = r1quant.quantize(llama, out, method="rtn", bits=bits, group_size=group_size, symmetric=symmetric)
    weights = table.artifact(open_folder(out))
    assert len(weights.linear_specs) == 14
    for linear in weights.linear_specs:
        q = weights.qlinear(linear)
        q.validate()
        assert q.bits == bits
        assert q.groups == (1 if group_size == -1 else q.shape[1] // group_size)
        assert q.zero.min() >= 1
    stated = json.loads((out / "quantize_config.json").read_text())
    assert (stated["bits"], stated["group_size"], stated["sym"]) == (bits, group_size, symmetric)
    assert (
        done.record.bits_per_weight
        == r1quant.plan(llama, method="rtn", bits=bits, group_size=group_size, symmetric=symmetric).bits_per_weight
    )


def test_the_plan_predicts_every_byte_of_the_weights(tmp_path: Path, llama: Path) -> None:
    made = r1quant.plan(llama, tmp_path / "out", method="rtn", group_size=32)
    r1quant.quantize(llama, tmp_path / "out", method="rtn", group_size=32)
    size = sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    small = sum((tmp_path / "out" / name).stat().st_size for name in ("r1quant.json", "quantize_config.json"))
    assert abs(size - small - made.estimate.output_bytes) < 1000


def test_large_models_are_written_in_shards(tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("r1quant.planning.layout.SHARD_LIMIT", 60_000)
    out = tmp_path / "out"
    r1quant.quantize(llama, out, method="rtn", group_size=32)
    shards = sorted(path.name for path in out.glob("*.safetensors"))
    assert len(shards) > 2
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    monkeypatch.setattr("r1quant.planning.layout.SHARD_LIMIT", 10**9)
    whole = tmp_path / "whole"
    r1quant.quantize(llama, whole, method="rtn", group_size=32)
    one, many = open_folder(whole), open_folder(out)
    assert set(one.tensors) == set(many.tensors)
    assert all(one.read(name).equal(many.read(name)) for name in one.tensors)


def test_same_plan_same_bytes(tmp_path: Path, llama: Path, text_file: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        r1quant.quantize(llama, tmp_path / name / "out", group_size=32, calib=str(text_file), samples=8, seq_len=64)
    for path in sorted((tmp_path / "a" / "out").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / "out" / path.name).read_bytes(), path.name


def test_inputs_that_overflow_are_named(tmp_path: Path, text_file: Path) -> None:
    from r1quant.errors import NumericError

    model = models.write_model(tmp_path / "m", "llama", dtype="float32")
    from safetensors.torch import load_file, save_file

    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.post_attention_layernorm.weight"] *= 1e15  # gate times up is 1e30, its square overflows
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(NumericError, match=r"model\.layers\.1\.mlp\.down_proj"):
        r1quant.quantize(
            model,
            tmp_path / "out",
            method="gptq",
            group_size=32,
            calib=str(text_file),
            samples=4,
            seq_len=32,
            dtype="float32",
        )
    assert not (tmp_path / "out").exists()


def test_dead_channels_are_reported(tmp_path: Path, text_file: Path) -> None:
    model = models.write_model(tmp_path / "m", "llama")
    from safetensors.torch import load_file, save_file

    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.0.input_layernorm.weight"][[5, 6]] = 0
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    done = r1quant.quantize(model, tmp_path / "out", group_size=32, calib=str(text_file), samples=4, seq_len=32)
    assert any("layers.0.self_attn.q_proj: 2 dead input columns" in line for line in done.record.fallbacks)


def test_qwen3_8b_has_the_shapes_it_is_known_for() -> None:
    config = models.config(
        "qwen3",
        hidden_size=4096,
        intermediate_size=12288,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=151936,
    )
    shapes = {n: s for n, s in architectures()["qwen3"].shapes(config).items() if not n.endswith(".bias")}
    assert sum(int(np.prod(s)) for s in shapes.values()) == 8_190_735_360
    linears = [n for n in shapes if ".self_attn." in n or ".mlp." in n]
    linears = [n for n in linears if len(shapes[n]) == 2]
    assert len(linears) == 252
    assert sum(int(np.prod(shapes[n])) for n in linears) == 6_945_767_424


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(CheckpointError, match="'bloom' is not a supported"):
        architecture_of({"model_type": "bloom"})

"""The metadata of files as they are written: against those of llama.cpp's own converter, and rotary embeddings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from r1quant.arch import rope
from r1quant.errors import CheckpointError
from tests.models import ASSISTANT, BOS, EOS, MODEL_TYPES, TEMPLATE, USER, write_model

from .held import LLAMA3, export, floats, keys_of

F32 = gguf.GGMLQuantizationType.F32
# What convert_hf_to_gguf.py of llama.cpp (in llama-cpp-python 0.3.36) writes for these models with --outtype bf16,
# the tokenizer's lists and general.name left out. Of floats it writes the float32.
CONVERTED: dict[str, dict[str, Any]] = {
    "llama": {
        "llama.block_count": 2, "llama.context_length": 2048, "llama.embedding_length": 64,
        "llama.feed_forward_length": 96, "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2,
        "llama.rope.freq_base": 10000.0, "llama.attention.layer_norm_rms_epsilon": 1e-06,
        "llama.attention.key_length": 16, "llama.attention.value_length": 16, "llama.vocab_size": 512,
        "llama.rope.dimension_count": 16, "general.size_label": "127K",
    },
    "mistral": {
        "llama.block_count": 2, "llama.context_length": 2048, "llama.embedding_length": 64,
        "llama.feed_forward_length": 96, "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2,
        "llama.rope.freq_base": 10000.0, "llama.attention.layer_norm_rms_epsilon": 1e-06,
        "llama.attention.key_length": 16, "llama.attention.value_length": 16, "llama.vocab_size": 512,
        "llama.rope.dimension_count": 16, "general.size_label": "127K",
    },
    "qwen2": {
        "qwen2.block_count": 2, "qwen2.context_length": 2048, "qwen2.embedding_length": 64,
        "qwen2.feed_forward_length": 96, "qwen2.attention.head_count": 4, "qwen2.attention.head_count_kv": 2,
        "qwen2.rope.freq_base": 10000.0, "qwen2.attention.layer_norm_rms_epsilon": 1e-06,
        "general.size_label": "128K",
    },
    "qwen3": {
        "qwen3.block_count": 2, "qwen3.context_length": 2048, "qwen3.embedding_length": 64,
        "qwen3.feed_forward_length": 96, "qwen3.attention.head_count": 4, "qwen3.attention.head_count_kv": 2,
        "qwen3.rope.scaling.type": "yarn", "qwen3.rope.scaling.factor": 4.0,
        "qwen3.rope.scaling.original_context_length": 512, "qwen3.rope.scaling.yarn_attn_factor": 0.8782488562869419,
        "qwen3.rope.freq_base": 1000000.0, "qwen3.attention.layer_norm_rms_epsilon": 1e-06,
        "qwen3.attention.key_length": 32, "qwen3.attention.value_length": 32, "general.size_label": "152K",
    },
    "gemma3_text": {
        "gemma3.block_count": 2, "gemma3.context_length": 2048, "gemma3.embedding_length": 64,
        "gemma3.feed_forward_length": 96, "gemma3.attention.head_count": 4, "gemma3.attention.head_count_kv": 2,
        "gemma3.rope.freq_base": 1000000.0, "gemma3.attention.layer_norm_rms_epsilon": 1e-06,
        "gemma3.attention.key_length": 32, "gemma3.attention.value_length": 32, "gemma3.attention.sliding_window": 8,
        "general.size_label": "152K",
    },
}  # fmt: skip
ALWAYS = {
    "general.type": "model", "general.sampling.temp": 0.6, "general.file_type": 32,
    "general.quantization_version": 2, "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.eos_token_id": 1, "tokenizer.chat_template": TEMPLATE,
}  # fmt: skip
# What it leaves to defaults and r1quant writes.
ADDED: dict[str, dict[str, Any]] = {
    "llama": {}, "mistral": {},
    "qwen2": {"qwen2.attention.key_length": 16, "qwen2.attention.value_length": 16},
    "qwen3": {"qwen3.rope.scaling.attn_factor": 0.8782488562869419}, "gemma3_text": {},
}  # fmt: skip
LISTS = ("tokens", "token_type", "merges")


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_metadata_are_those_of_llama_cpps_converter(tmp_path: Path, model_type: str) -> None:
    artifact = floats(write_model(tmp_path / "a", model_type))
    export(artifact, tmp_path / "m.gguf", name="some name")
    metadata = keys_of(tmp_path / "m.gguf")
    architecture = {"mistral": "llama", "gemma3_text": "gemma3"}.get(model_type, model_type)
    expected = {
        **CONVERTED[model_type], **ALWAYS, **ADDED[model_type],
        "general.architecture": architecture, "general.name": "some name", "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.add_eos_token": False,
    }  # fmt: skip
    assert set(metadata) == set(expected) | {f"tokenizer.ggml.{key}" for key in LISTS}
    for key, value in expected.items():
        assert metadata[key] == (np.float32(value) if isinstance(value, float) else value), key
    raw = json.loads(artifact.side_files["tokenizer.json"])
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    assert len(tokens) == len(kinds) == artifact.config["vocab_size"]
    assert tokens[:4] == [BOS, EOS, USER, ASSISTANT] and kinds[:5] == [3, 3, 3, 3, 1]
    assert tokens[478:482] == ["<think>", "</think>", "[PAD480]", "[PAD481]"] and kinds[478:482] == [4, 4, 5, 5]
    assert all(tokens[index] == token for token, index in raw["model"]["vocab"].items())
    assert metadata["tokenizer.ggml.merges"] == [" ".join(pair) for pair in raw["model"]["merges"]]


def test_llama_3_scaling_is_a_table(tmp_path: Path) -> None:
    """Frequencies divided by the table are transformers' own."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    artifact = floats(write_model(tmp_path / "a", "llama", rope_scaling=LLAMA3))
    export(artifact, tmp_path / "m.gguf")
    table = next(t for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors if t.name == "rope_freqs.weight")
    assert table.tensor_type == F32 and table.shape.tolist() == [8]
    config = LlamaConfig(head_dim=16, rope_parameters={**LLAMA3, "rope_theta": 10000.0})
    scaled = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))[0].numpy()
    plain = 10000.0 ** (-np.arange(0, 16, 2) / 16)
    np.testing.assert_allclose(plain / table.data, scaled, rtol=1e-6)
    assert table.data.min() == 1.0 and table.data.max() == 8.0
    assert not any("rope.scaling" in key for key in keys_of(tmp_path / "m.gguf"))


R1_SCALING = {
    "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512, "attn_factor": 0.8782488562869419
}  # fmt: skip
STOCK = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}


@pytest.mark.parametrize("model_type", ["qwen3", "qwen2", "llama"])
@pytest.mark.parametrize(
    ("scaling", "factor"),
    [(R1_SCALING, 1.0), (STOCK, 1.1386294361), ({**R1_SCALING, "attention_factor": 1.05}, 1.05)],
    ids=["attn_factor", "neither", "attention_factor"],
)
def test_one_attention_factor_of_yarn_is_written(
    tmp_path: Path, model_type: str, scaling: dict[str, Any], factor: float
) -> None:
    """llama.cpp multiplies cosine and sine by 0.1 ln(factor) + 1 and by rope.scaling.attn_factor."""
    artifact = floats(write_model(tmp_path / "a", model_type, rope_scaling=scaling))
    assert rope.attention_factor(artifact.config) == pytest.approx(factor)
    export(artifact, tmp_path / "m.gguf")
    metadata = keys_of(tmp_path / "m.gguf")
    attn_factor = metadata[f"{model_type}.rope.scaling.attn_factor"]
    assert attn_factor * (0.1 * np.log(4.0) + 1) == pytest.approx(factor, rel=1e-6)
    assert metadata[f"{model_type}.rope.scaling.type"] == "yarn"
    assert metadata[f"{model_type}.rope.scaling.original_context_length"] == 512


@pytest.mark.parametrize(
    ("change", "message"),
    [({"beta_fast": 16}, "beta_fast = 16"), ({"truncate": False}, "truncate = false")],
)
def test_yarn_that_llama_cpp_does_not_compute_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    artifact = floats(write_model(tmp_path / "a", "qwen3", rope_scaling={**R1_SCALING, **change}))
    with pytest.raises(CheckpointError, match=message):
        export(artifact, tmp_path / "m.gguf")


def test_linear_scaling(tmp_path: Path) -> None:
    artifact = floats(write_model(tmp_path / "a", "llama", rope_scaling={"rope_type": "linear", "factor": 2.0}))
    export(artifact, tmp_path / "m.gguf")
    metadata = keys_of(tmp_path / "m.gguf")
    assert metadata["llama.rope.scaling.type"] == "linear" and metadata["llama.rope.scaling.factor"] == 2.0
    assert "llama.rope.scaling.attn_factor" not in metadata

"""What llama.cpp computes of a file of ours is what transformers computes of the checkpoint: order of rows, rotary
embeddings, attention factor, tied and untied heads, parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from r1quant.arch import rope
from r1quant.arch.tables import architecture_of
from r1quant.core.blocktypes import BLOCK_TYPES
from r1quant.formats.gguf.options import GgufOptions
from r1quant.formats.gguf.write import write
from tests.models import write_model

from . import llama
from .held import WIDE, Held, floats, in_blocks

IDS = [(i * 37) % 478 for i in range(160)]
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "mistral": ("mistral", {"tied": True}),
    "qwen2": ("qwen2", {"tied": True}),
    "attn_factor": ("qwen3", {"rope_scaling": {**YARN, "attn_factor": 0.8782488562869419}}),
    "yarn": ("qwen3", {"rope_scaling": YARN}),
    "attention_factor": ("qwen2", {"rope_scaling": {**YARN, "attention_factor": 1.05}}),
    "yarn of llama": ("llama", {"rope_scaling": YARN}),
    "llama3": (
        "llama",
        {"rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }},
    ),
    "linear": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "gemma3": ("gemma3_text", {"num_hidden_layers": 6, "tied": True}),
    "gemma3 linear": (
        "gemma3_text", {"num_hidden_layers": 6, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    ),
}  # fmt: skip


def transformers_logits(artifact: Held, folder: Path) -> np.ndarray:
    from transformers import AutoConfig, AutoModelForCausalLM

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(rope.explicit(artifact.config)))
    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    model.load_state_dict({name: artifact.read(name) for name in artifact.tensors}, strict=False)
    model.tie_weights()
    with torch.no_grad():
        found: np.ndarray = model(torch.tensor([IDS])).logits[0].numpy()
    return found


@pytest.mark.parametrize("case", MODELS)
def test_llama_cpp_computes_the_model(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model_type, changes = MODELS[case]
    artifact = floats(write_model(tmp_path / "a", model_type, dtype="float32", **changes))
    arch = architecture_of(artifact.config)
    monkeypatch.setattr("r1quant.formats.gguf.options.SMALLEST_PART", 1000)
    whole = write(artifact, arch, tmp_path / "m.gguf", GgufOptions())
    parts = write(artifact, arch, tmp_path / "p.gguf", GgufOptions(split_bytes=100_000))
    expected = transformers_logits(artifact, tmp_path / "config")
    found = llama.logits(whole.paths[0], IDS)
    tolerance = 1e-2 if model_type == "gemma3_text" else 5e-5  # llama.cpp looks GELU up in a table of float16
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
    assert len(parts.paths) > 2 and np.array_equal(llama.logits(parts.paths[0], IDS), found)


MIXTURES = {
    **{type: {"_proj": type} for type in BLOCK_TYPES},
    "Q4_K_M": {"v_proj": "Q6_K", "_proj": "Q4_K", "embed_tokens": "IQ3_S", "lm_head": "Q6_K"},
    "IQ2_XXS with tables": {"v_proj": "Q4_K", "_proj": "IQ2_XXS", "embed_tokens": "Q2_K", "lm_head": "Q5_K"},
}


@pytest.mark.parametrize("case", MIXTURES)
def test_llama_cpp_computes_every_type(tmp_path: Path, case: str) -> None:
    """It rounds activations to 8 bits, which moves these logits by 0.6 to 2.8 percent, those of Q4_K_M by 6.6."""
    artifact = in_blocks(write_model(tmp_path / "a", "llama", dtype="float32", **WIDE), MIXTURES[case])
    done = write(artifact, architecture_of(artifact.config), tmp_path / "m.gguf", GgufOptions())
    expected = transformers_logits(artifact, tmp_path / "config")
    found = llama.logits(done.paths[0], IDS)
    assert np.abs(found - expected).mean() < 0.1 * np.abs(expected - expected.mean()).mean()


def test_the_attention_factor_matters(tmp_path: Path) -> None:
    """That the test above would see a wrong factor."""
    folders = [
        write_model(tmp_path / str(n), "qwen3", dtype="float32", rope_scaling={**YARN, "attention_factor": factor})
        for n, factor in enumerate((1.0, 1.01))
    ]
    found = []
    for n, folder in enumerate(folders):
        artifact = floats(folder)
        done = write(artifact, architecture_of(artifact.config), tmp_path / f"{n}.gguf", GgufOptions())
        found.append(llama.logits(done.paths[0], IDS))
    assert np.abs(found[0] - found[1]).max() > 1e-3

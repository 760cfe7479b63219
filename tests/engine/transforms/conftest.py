"""Models whose layers the transforms act on: every family, biased where it can be, and the embedded tiny-r1."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from r1quant.checkpoint.resolve import open_model
from r1quant.checkpoint.safetensors import Checkpoint, open_folder
from tests import models

Open = Callable[[str], Checkpoint]

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tied": True}),
    "llama-multi-head": ("llama", {"num_key_value_heads": 4}),
    "llama-biased": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-bfloat16": ("llama", {"dtype": "bfloat16"}),
    "llama-hidden-48": ("llama", {"hidden_size": 48, "head_dim": 12}),
    "mistral": ("mistral", {}),
    "qwen2": ("qwen2", {}),
    "qwen2-tied": ("qwen2", {"tied": True}),
    "qwen3": ("qwen3", {}),
}
FAMILIES = (*CASES, "tiny-r1")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Open:
    """Opens a model by its name in FAMILIES; random ones are written once."""
    made: dict[str, Path] = {}

    def opened(name: str) -> Checkpoint:
        if name == "tiny-r1":
            return open_model(name)
        if name not in made:
            model_type, options = CASES[name]
            folder = tmp_path_factory.mktemp("transforms") / name
            made[name] = models.write_model(folder, model_type, **{"dtype": "float32", **options})
            if name == "llama-biased":
                _add_biases(folder)
        return open_folder(made[name])

    return opened


def _add_biases(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    noise = torch.Generator().manual_seed(1)
    for name in [n for n in tensors if n.endswith("_proj.weight")]:
        tensors[name.removesuffix("weight") + "bias"] = torch.randn(len(tensors[name]), generator=noise) * 0.3
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def tokens(checkpoint: Checkpoint, windows: int = 3, length: int = 40) -> torch.Tensor:
    draw = np.random.default_rng(0)
    return torch.from_numpy(draw.integers(0, checkpoint.config["vocab_size"], (windows, length)))


def changed(
    checkpoint: Checkpoint, folder: Path, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype
) -> Checkpoint:
    """A copy with other tensors, stored in a dtype."""
    folder.mkdir()
    state = {name: checkpoint.read(name) for name in checkpoint.tensors} | dict(tensors)
    save_file({name: tensor.to(dtype).contiguous() for name, tensor in state.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(checkpoint.config_text)
    return open_folder(folder)

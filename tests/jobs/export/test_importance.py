"""The sums of x**2 of every linear, against the library's whole model with a hook on each of its linears."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from r1quant.arch.tables import architecture_of
from r1quant.checkpoint.safetensors import Checkpoint, open_folder
from r1quant.engine.forward import Decoder, TensorSource, chunked
from r1quant.errors import NumericError
from r1quant.jobs.export.importance import importance
from tests import independent, models

CASES: dict[str, dict[str, Any]] = {"llama": {}, "mistral": {"sliding_window": 8}, "qwen2": {}, "qwen3": {}}


def decoder(weights: TensorSource, tokens: np.ndarray) -> Decoder:
    return Decoder(weights, architecture_of(weights.config), torch.device("cpu"), torch.float32, tokens.shape[1])


def whole(checkpoint: Checkpoint, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """float64 [in] of every linear but the head."""
    model = independent.whole_model(checkpoint)
    sums: dict[str, np.ndarray] = {}

    def hook(name: str):  # type: ignore[no-untyped-def]
        def add(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            x = inputs[0].double().numpy()
            sums[name] = sums.get(name, 0) + (x.reshape(-1, x.shape[-1]) ** 2).sum(0)

        return add

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            module.register_forward_pre_hook(hook(name))
    with torch.inference_mode():
        for window in tokens:
            model(torch.from_numpy(window)[None])
    return sums


@pytest.mark.parametrize("model_type", CASES)
def test_sums_are_those_of_the_whole_model(model_type: str, tmp_path: Path) -> None:
    checkpoint = open_folder(models.write_model(tmp_path / "m", model_type, **CASES[model_type]))
    tokens = np.random.default_rng(1).integers(0, 512, (5, 40))
    expected = whole(checkpoint, tokens)
    found = importance(decoder(checkpoint, tokens), tokens)
    assert found.tokens == tokens.size
    assert found.sums.keys() == expected.keys() and len(expected) == 14
    for name, sums in expected.items():
        assert found.sums[name].dtype == np.float64
        np.testing.assert_allclose(found.sums[name], sums, rtol=1e-4, atol=1e-6 * sums.max(), err_msg=name)
        assert sums.max() > 1.5 * np.median(sums)  # channels do differ


def test_linears_of_one_stage_share_their_sums_and_stages_do_not(llama: Path) -> None:
    checkpoint = open_folder(llama)
    tokens = np.random.default_rng(1).integers(0, 512, (2, 16))
    sums = importance(decoder(checkpoint, tokens), tokens).sums
    q, k, v, o = (sums[f"model.layers.1.self_attn.{name}_proj"] for name in "qkvo")
    gate, up, down = (sums[f"model.layers.1.mlp.{name}_proj"] for name in ("gate", "up", "down"))
    assert (q == k).all() and (q == v).all() and (gate == up).all()
    assert not np.allclose(q, o) and not np.allclose(q, gate) and down.shape != gate.shape


def test_chunks_do_not_change_the_sums(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_folder(llama)
    tokens = np.random.default_rng(1).integers(0, 512, (6, 16))
    model = decoder(checkpoint, tokens)
    whole = importance(model, tokens).sums
    monkeypatch.setattr(chunked, "__defaults__", (32,))
    for name, sums in importance(model, tokens).sums.items():
        np.testing.assert_allclose(sums, whole[name], rtol=1e-5)


def test_inputs_that_overflow_are_named(tmp_path: Path) -> None:
    checkpoint = open_folder(models.write_model(tmp_path / "m", "llama", dtype="float32"))

    class Large:
        config, tensors = checkpoint.config, checkpoint.tensors

        def read(self, name: str) -> torch.Tensor:
            tensor = checkpoint.read(name)
            return tensor * 1e30 if name.endswith("layers.1.mlp.up_proj.weight") else tensor

    tokens = np.random.default_rng(1).integers(0, 512, (2, 16))
    with pytest.raises(NumericError, match=r"model\.layers\.1\.mlp\.down_proj"):
        importance(decoder(Large(), tokens), tokens)

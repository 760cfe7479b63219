"""Importance with weights of tokens, against inputs and gradients of the whole model by automatic differentiation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from r1quant.engine.forward import chunked
from r1quant.engine.sensitivity import Sensitivity
from r1quant.jobs.export.importance import importance
from r1quant.jobs.quantize.sensitivity import Sensitivities, measured
from r1quant.progress import Silent
from tests import models
from tests.engine.test_sensitivity import TOKENS, by_autograd, decoder, reading


@pytest.mark.parametrize("model_type", models.MODEL_TYPES)
def test_each_linear_counts_tokens_by_its_own_gradient(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunked, "__defaults__", (48,))
    folder = models.write_model(tmp_path / "model", model_type, rope_scaling=None)
    model = decoder(folder)
    guidance = measured(model, reading(), tmp_path / "cache", Silent())
    found, plain = (importance(model, TOKENS, given) for given in (guidance, None))
    expected = by_autograd(folder)
    assert found.sums.keys() == plain.sums.keys() == expected.keys() and found.tokens == TOKENS.size
    for name, seen in expected.items():
        weights = seen.gradient.double().norm(dim=1)
        sums = (weights / weights.mean()) @ seen.inputs.double().square()
        np.testing.assert_allclose(found.sums[name], sums, rtol=2e-3, err_msg=name)
        assert np.abs(found.sums[name] / plain.sums[name] - 1).max() > 0.02, name
    q, k = (found.sums[f"model.layers.0.self_attn.{name}_proj"] for name in "qk")
    assert np.abs(q / k - 1).max() > 0.02


@pytest.mark.parametrize("weight", [4.0, 0.0])
def test_where_all_tokens_count_alike_or_none_does_it_is_plain(weight: float, tmp_path: Path) -> None:
    model = decoder(models.write_model(tmp_path / "model", "llama"))

    class Alike(Sensitivities):
        def layer(self, index: int) -> dict[str, Sensitivity]:
            even = Sensitivity(torch.full((TOKENS.size,), weight), ())
            return dict.fromkeys(model.arch.layer.linears, even)

    guided, plain = (importance(model, TOKENS, given).sums for given in (Alike((tmp_path,)), None))
    assert guided.keys() == plain.keys() and all((guided[name] == plain[name]).all() for name in plain)

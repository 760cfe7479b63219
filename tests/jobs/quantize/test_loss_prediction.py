"""What rounding is predicted to cost is what it costs, for each kind of linear alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from r1quant.checkpoint.resolve import EMBEDDED, open_model
from r1quant.checkpoint.tokenizer import Tokenizer
from r1quant.core.blocktypes import BlockGrid
from r1quant.data import texts, windows
from r1quant.engine.stats import HessianAccumulator
from r1quant.engine.tables import round_table
from r1quant.jobs.artifacts import open_artifact
from r1quant.jobs.quantize import run
from r1quant.jobs.quantize.prepare import decided
from r1quant.planning import planner
from r1quant.planning.budget import LossPredictions
from r1quant.progress import Silent
from r1quant.recipe import Recipe
from tests import independent

KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.mark.parametrize(("method", "bits"), [("rtn", 4), ("gptq", 3)])
def test_each_kind_costs_what_is_predicted_within_a_factor_of_two(
    method: str, bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, predictions: list[LossPredictions]
) -> None:
    """On tiny-r1, whose gradients differ between tokens by orders of magnitude."""
    monkeypatch.setenv("R1QUANT_CACHE", str(tmp_path / "cache"))
    grid: dict[str, Any] = {"method": method, "guided": True, "group_size": 64, "samples": 16, "seq_len": 256}
    choice = Recipe(**grid, format="compressed-tensors", target_bpw=5.0, allowed_bits=(bits, 6))
    decided(planner.make(open_model(EMBEDDED), choice, None), Silent())
    (losses,) = (made.losses for made in predictions)
    run.quantize(EMBEDDED, tmp_path / "all", Recipe(**grid, bits=bits))
    source, rounded = open_model(EMBEDDED), open_artifact(tmp_path / "all")
    text = windows.load(texts.CHAINS, Tokenizer.of(source), 16, 256, 0).tokens
    model = independent.whole_model(source)

    def log_probs() -> torch.Tensor:
        with torch.no_grad():
            result: torch.Tensor = model(torch.from_numpy(text)).logits.double().log_softmax(-1)
            return result

    def cost(linears: list[str]) -> float:
        weights = {name: model.get_parameter(f"{name}.weight") for name in linears}
        before = {name: weight.data for name, weight in weights.items()}
        for name, weight in weights.items():
            weight.data = torch.from_numpy(rounded.qlinear(name).dequantize())
        found = log_probs()
        for name, weight in weights.items():
            weight.data = before[name]
        return float((whole.exp() * (whole - found)).sum(-1).mean())

    whole = log_probs()
    for kind in (*KINDS, "_proj"):
        linears = [name for name in rounded.linear_specs if name.endswith(kind)]
        ratio = cost(linears) / sum(losses[name][bits] for name in linears)
        assert 0.5 < ratio < 2, f"{kind}: measured {ratio:.2f} of what was predicted"


def test_embedding_and_head_cost_what_is_predicted_within_a_factor_of_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, predictions: list[LossPredictions]
) -> None:
    """As a type that is tried, and as one that follows from it."""
    monkeypatch.setenv("R1QUANT_CACHE", str(tmp_path / "cache"))
    recipe = Recipe(format="gguf", target_bpw=5.0, allowed_types=("Q4_K", "Q6_K"), samples=16, seq_len=256)
    source = open_model(EMBEDDED)
    decided(planner.make(source, recipe), Silent())
    (losses,) = (made.losses for made in predictions)
    text = torch.from_numpy(windows.load(texts.CHAINS, Tokenizer.of(source), 16, 256, 0).tokens)
    model = independent.whole_model(source)
    with torch.no_grad():
        whole = model(text).logits.double().log_softmax(-1)
        read = HessianAccumulator(model.config.hidden_size, torch.device("cpu"))
        read.add(model.model(text).last_hidden_state)
    for name in ("model.embed_tokens", "lm_head"):
        weight = model.get_parameter(f"{name}.weight")
        before, stats = weight.data, read.stats if name == "lm_head" else None
        for type in ("Q4_K", "Q6_K"):
            rounded = round_table(name, before, BlockGrid(type), recipe, stats).qlinear
            weight.data = torch.from_numpy(rounded.dequantize())
            with torch.no_grad():
                found = model(text).logits.double().log_softmax(-1)
            weight.data = before
            ratio = float((whole.exp() * (whole - found)).sum(-1).mean()) / losses[name][type]
            assert 0.5 < ratio < 2, f"{name} as {type}: measured {ratio:.2f} of what was predicted"

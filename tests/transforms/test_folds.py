"""A fold changes weights and nothing else: transformers' own layer gives the same output before and after."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from r1quant.archs import architecture_of
from r1quant.checkpoint import Checkpoint
from r1quant.forward import Decoder, layer_state
from r1quant.transforms.folds import Fold, apply, folds
from tests.transforms.conftest import FAMILIES, Open

CPU = torch.device("cpu")
STAGES = ("qkv", "attention_out", "gate_up", "down")


def state_of(checkpoint: Checkpoint, layer: int = 1) -> dict[str, torch.Tensor]:
    return layer_state(checkpoint, architecture_of(checkpoint.config), layer, CPU, torch.float32)


def output(checkpoint: Checkpoint, state: Mapping[str, torch.Tensor], layer: int = 1) -> torch.Tensor:
    """What layer 1 makes of random hidden states, in float64, with these weights."""
    decoder = Decoder(checkpoint, architecture_of(checkpoint.config), CPU, torch.float64, 40)
    hidden = torch.randn(2, 40, checkpoint.config["hidden_size"], generator=torch.Generator().manual_seed(5))
    with torch.inference_mode(), decoder.layer(layer) as filled:
        filled.module.load_state_dict({name: t.double() for name, t in state.items()}, strict=True)
        return filled(hidden.double()) - hidden


def random_scale(fold: Fold, seed: int = 0) -> torch.Tensor:
    """Between 1/8 and 8, one for each source."""
    noise = torch.rand(fold.outputs, generator=torch.Generator().manual_seed(seed))
    return torch.exp2(6 * noise - 3)[fold.source]


def folds_of(checkpoint: Checkpoint) -> dict[str, Fold]:
    found = folds(architecture_of(checkpoint.config), checkpoint.config)
    return dict(zip(STAGES, found, strict=True))


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_layers_output_is_unchanged(model: Open, family: str, stage: str) -> None:
    checkpoint = model(family)
    fold, before = folds_of(checkpoint)[stage], state_of(checkpoint)
    after = dict(before)
    apply(after, fold, random_scale(fold), torch.float32)
    changed = {name for name in before if not before[name].equal(after[name])}
    producers = {name for name in before if name in (f"{fold.producer}.weight", f"{fold.producer}.bias")}
    assert changed == {f"{name}.weight" for name in fold.consumers} | producers
    expected = output(checkpoint, before)
    assert (output(checkpoint, after) - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("family", ["llama-biased", "qwen3", "tiny-r1"])
def test_all_folds_of_a_layer_together(model: Open, family: str) -> None:
    checkpoint = model(family)
    before = state_of(checkpoint)
    after = dict(before)
    for seed, fold in enumerate(folds_of(checkpoint).values()):
        apply(after, fold, random_scale(fold, seed), torch.float32)
    expected = output(checkpoint, before)
    assert (output(checkpoint, after) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_the_test_sees_a_fold_without_its_other_half(model: Open) -> None:
    """Of every tensor that a fold changes: put back alone, the output is another."""
    checkpoint = model("llama-biased")
    before = state_of(checkpoint)
    expected = output(checkpoint, before)
    for fold in folds_of(checkpoint).values():
        after = dict(before)
        apply(after, fold, random_scale(fold), torch.float32)
        for name in [name for name in before if not before[name].equal(after[name])]:
            wrong = output(checkpoint, after | {name: before[name]})
            assert (wrong - expected).abs().max() > 1e-3 * expected.abs().max(), name


def test_a_norm_is_rounded_as_stored_and_its_factor_makes_up_for_it(model: Open) -> None:
    checkpoint = model("llama-bfloat16")
    before = state_of(checkpoint)
    for stage in ("qkv", "gate_up"):
        fold, after = folds_of(checkpoint)[stage], dict(before)
        wanted = random_scale(fold)
        applied = apply(after, fold, wanted, torch.bfloat16)
        norm = after[f"{fold.producer}.weight"]
        assert norm.equal(norm.bfloat16().float())
        assert 0 < ((applied - wanted) / wanted).abs().max() < 2**-7
        expected = output(checkpoint, before)
        assert (output(checkpoint, after) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_norm_channels_that_are_zero_or_would_vanish_are_left_alone(model: Open) -> None:
    checkpoint = model("llama")
    fold, before = folds_of(checkpoint)["qkv"], state_of(checkpoint)
    norm = before["input_layernorm.weight"].clone()
    norm[3], norm[5], norm[7] = 0, 1e-7, 1000
    before["input_layernorm.weight"] = norm
    after, scale = dict(before), torch.ones(64)
    scale[3], scale[5], scale[7] = 4, 1e4, 1e-3
    applied = apply(after, fold, scale, torch.float16)
    assert applied[[3, 5, 7]].tolist() == [1, 1, 1]
    assert after["input_layernorm.weight"][[3, 5, 7]].equal(norm[[3, 5, 7]])


def test_grouped_queries_share_the_channels_of_v(model: Open) -> None:
    """4 heads of 16 channels over 2 heads of v: written out."""
    source = folds_of(model("llama"))["attention_out"].source
    assert source.tolist() == [*range(16), *range(16), *range(16, 32), *range(16, 32)]


def test_tied_values(model: Open) -> None:
    fold = folds_of(model("llama"))["attention_out"]
    values = torch.arange(64.0)
    assert fold.tied(values, "amax")[:32].tolist() == [*range(16, 32), *range(16, 32)]
    assert fold.tied(values, "mean")[32:].tolist() == [i + 8.0 for i in [*range(32, 48), *range(32, 48)]]


@pytest.mark.parametrize("scale", [-1.0, 0.0, float("nan"), float("inf")])
def test_factors_that_cannot_be_divided_by_are_refused(model: Open, scale: float) -> None:
    checkpoint = model("llama")
    state: dict[str, Any] = state_of(checkpoint)
    factors = torch.ones(64)
    factors[2] = scale
    with pytest.raises(ValueError, match=r"positive and finite|different factors"):
        apply(state, folds_of(checkpoint)["qkv"], factors, torch.float32)
    assert all(state[name].equal(tensor) for name, tensor in state_of(checkpoint).items())


def test_factors_that_differ_within_a_source_are_refused(model: Open) -> None:
    checkpoint = model("llama")
    factors = torch.ones(64)
    factors[0] = 2
    with pytest.raises(ValueError, match="different factors"):
        apply(state_of(checkpoint), folds_of(checkpoint)["attention_out"], factors, torch.float32)

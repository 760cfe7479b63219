"""A fold changes weights and nothing else: transformers' own layer gives the same output before and after."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from r1quant.arch.tables import architecture_of
from r1quant.checkpoint.safetensors import Checkpoint
from r1quant.engine.forward import Decoder, layer_state
from r1quant.engine.transforms.folds import Fold, folded, folds
from tests.engine.transforms.conftest import FAMILIES, Open, changed

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


def behind(checkpoint: Checkpoint, scales: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of layer 1 with these factors folded in, by stage; the other stages have none."""
    return state_of(folded(checkpoint, {1: scales}).unrounded())


def folds_of(checkpoint: Checkpoint) -> dict[str, Fold]:
    return folds(architecture_of(checkpoint.config), checkpoint.config)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_layers_output_is_unchanged(model: Open, family: str, stage: str) -> None:
    checkpoint = model(family)
    fold, before = folds_of(checkpoint)[stage], state_of(checkpoint)
    after = behind(checkpoint, {stage: random_scale(fold)})
    touched = {name for name in before if not before[name].equal(after[name])}
    producers = {name for name in before if name in (f"{fold.producer}.weight", f"{fold.producer}.bias")}
    assert touched == {f"{name}.weight" for name in fold.consumers} | producers
    expected = output(checkpoint, before)
    assert (output(checkpoint, after) - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("family", ["llama-biased", "qwen3", "tiny-r1"])
def test_all_folds_of_a_layer_together(model: Open, family: str) -> None:
    checkpoint = model(family)
    after = behind(checkpoint, {stage: random_scale(fold, i) for i, (stage, fold) in _numbered(checkpoint)})
    expected = output(checkpoint, state_of(checkpoint))
    assert (output(checkpoint, after) - expected).abs().max() < 1e-5 * expected.abs().max()


def _numbered(checkpoint: Checkpoint) -> list[tuple[int, tuple[str, Fold]]]:
    return list(enumerate(folds_of(checkpoint).items()))


def test_the_test_sees_a_fold_without_its_other_half(model: Open) -> None:
    """Of every tensor that a fold changes: put back alone, the output is another."""
    checkpoint = model("llama-biased")
    before = state_of(checkpoint)
    expected = output(checkpoint, before)
    for stage, fold in folds_of(checkpoint).items():
        after = behind(checkpoint, {stage: random_scale(fold)})
        for name in [name for name in before if not before[name].equal(after[name])]:
            wrong = output(checkpoint, after | {name: before[name]})
            assert (wrong - expected).abs().max() > 1e-3 * expected.abs().max(), name


def test_a_norm_is_rounded_as_stored_and_its_factor_makes_up_for_it(model: Open) -> None:
    """In bfloat16: the norm that is written and the linears that are rounded later belong together."""
    checkpoint = model("llama-bfloat16")
    expected = output(checkpoint, state_of(checkpoint))
    for stage in ("qkv", "gate_up"):
        fold = folds_of(checkpoint)[stage]
        wanted, norm = random_scale(fold), f"model.layers.1.{fold.producer}.weight"
        view = folded(checkpoint, {1: {stage: wanted}})
        written = view.read(norm)
        assert written.dtype is torch.bfloat16
        applied = checkpoint.read(norm).float() / written.float()
        assert 0 < ((applied - wanted) / wanted).abs().max() < 2**-7
        after = state_of(view.unrounded()) | {f"{fold.producer}.weight": written.float()}
        assert (output(checkpoint, after) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_norm_channels_that_are_zero_or_would_vanish_are_left_alone(model: Open, tmp_path: Path) -> None:
    name = "model.layers.1.input_layernorm.weight"
    norm = model("llama").read(name).clone()
    norm[3], norm[5], norm[7] = 0, 6e-8, 1000
    checkpoint = changed(model("llama"), tmp_path / "m", {name: norm}, torch.float16)
    scale = torch.ones(64)
    scale[3], scale[5], scale[7] = 4, 1e4, 1e-3
    after = behind(checkpoint, {"qkv": scale})
    assert all(tensor.equal(after[name]) for name, tensor in state_of(checkpoint).items())


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
    factors = torch.ones(64)
    factors[2] = scale
    with pytest.raises(ValueError, match=r"positive and finite|different factors"):
        behind(model("llama"), {"qkv": factors})


def test_factors_that_differ_within_a_source_are_refused(model: Open) -> None:
    factors = torch.ones(64)
    factors[0] = 2
    with pytest.raises(ValueError, match="different factors"):
        behind(model("llama"), {"attention_out": factors})

"""The streamed pass against automatic differentiation of the whole model."""

from __future__ import annotations

import fcntl
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
import transformers

from r1quant.arch.tables import architecture_of
from r1quant.checkpoint.resolve import open_model
from r1quant.data.windows import Calibration
from r1quant.engine import sensitivity
from r1quant.engine.forward import Decoder
from r1quant.errors import NumericError
from r1quant.jobs.quantize.calibration import CalibrationRun
from r1quant.jobs.quantize.sensitivity import measured
from r1quant.planning import estimates, planner
from r1quant.progress import Silent
from r1quant.recipe import Recipe
from tests import models

CPU = torch.device("cpu")
TOKENS = np.random.default_rng(0).integers(0, models.VOCABULARY, (6, 24))


def decoder(folder: Path) -> Decoder:
    checkpoint = open_model(folder)
    return Decoder(checkpoint, architecture_of(checkpoint.config), CPU, torch.float32, TOKENS.shape[1])


def reading(tokens: npt.NDArray[np.int64] = TOKENS, of: str = "this") -> CalibrationRun:
    """A calibration run of tokens; `of` stands for all else that decides it."""
    return CalibrationRun(Calibration(tokens, "", "", 1, len(tokens)), "cpu", "float32", {"of": of})


@dataclass(frozen=True, eq=False)
class Seen:
    """By one linear: inputs [tokens, K], and the gradient [tokens, N] at its output."""

    inputs: torch.Tensor
    gradient: torch.Tensor


def drawn_by(logits: torch.Tensor, seed: int) -> torch.Tensor:
    """Tokens int64 [T] drawn from logits [T, V], each at a level of its own of the cumulative distribution."""
    level = torch.rand((len(logits), 1), generator=torch.Generator().manual_seed(seed))
    return torch.searchsorted(logits.double().softmax(-1).cumsum(1), level.double())[:, 0]


def by_autograd(folder: Path) -> dict[str, Seen]:
    """Of every linear, the gradients being those of the loss of tokens drawn as the pass draws them."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.requires_grad_(False)
    kept: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":

            def seen(_: object, inputs: tuple[torch.Tensor], output: torch.Tensor, name: str = name) -> None:
                output.retain_grad()
                kept[name] = inputs[0], output

            module.register_forward_hook(seen)
    embedded = model.get_input_embeddings()(torch.from_numpy(TOKENS)).requires_grad_()
    logits = model(inputs_embeds=embedded).logits.flatten(0, 1)
    torch.nn.functional.cross_entropy(logits, drawn_by(logits.detach(), 1), reduction="sum").backward()
    result = {}
    for name, (inputs, output) in kept.items():
        assert output.grad is not None
        result[name] = Seen(inputs.detach().flatten(0, 1), output.grad.flatten(0, 1))
    return result


@pytest.mark.parametrize("model_type", models.MODEL_TYPES)
def test_it_is_what_autograd_gives(model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensitivity, "BLOCK", 40)
    monkeypatch.setattr(sensitivity, "BACKWARD_TOKENS", 48)
    folder = models.write_model(tmp_path / "model", model_type, rope_scaling=None)
    expected = by_autograd(folder)
    model = decoder(folder)
    found = measured(model, reading(), tmp_path / "cache", Silent())
    count = 0
    for index in range(models.LAYERS):
        for name, each in found.layer(index).items():
            gradient = expected[model.arch.layer_prefix(index) + name].gradient
            assert torch.allclose(each.weights, gradient.square().sum(1), rtol=1e-3, atol=1e-7)
            norms = gradient.norm(dim=1)
            whole = gradient.T @ (gradient / norms.clamp(min=1e-30)[:, None])
            whole *= norms.square().mean() / norms.sum()  # so that the trace is that of the mean of g g^T
            runs = sensitivity.blocks(len(whole))
            assert len(runs) == len(each.covariance) == -(-len(whole) // 40) and runs[-1].stop == len(whole)
            for run, part in zip(runs, each.covariance, strict=True):
                assert torch.allclose(part, whole[run, run], rtol=1e-3, atol=1e-3 * float(whole.diagonal().mean()))
            count += 1
    assert count == len(expected) == 7 * models.LAYERS


def test_tokens_are_drawn_as_often_as_they_are_likely(tmp_path: Path) -> None:
    """The mean over draws of the gradient is that of the cross-entropy with the model's own distribution: nothing."""
    model = decoder(models.write_model(tmp_path / "model", "llama", rope_scaling=None))
    hidden = torch.randn(1, 1, models.HIDDEN).expand(1, 40_000, models.HIDDEN)
    gradient = sensitivity.head_gradient(model, hidden, 1)[0]
    error = gradient.std(0) / len(gradient) ** 0.5
    assert bool((gradient.std(0) > 0).all()) and bool((gradient.mean(0).abs() < 5 * error).all())


@pytest.mark.parametrize(("share", "windows"), [(0.5, 3), (0.4, 3), (0.01, 1)])
def test_a_share_of_the_windows_is_the_first_ones(share: float, windows: int, tmp_path: Path) -> None:
    folder = models.write_model(tmp_path / "model", "llama")
    model, asked = decoder(folder), Recipe(guided=True, guided_share=share, samples=len(TOKENS)).guided_windows
    part = measured(model, reading(), tmp_path / "a", Silent(), windows=asked).layer(0)
    alone = measured(model, reading(TOKENS[:windows]), tmp_path / "b", Silent()).layer(0)
    whole = measured(model, reading(), tmp_path / "a", Silent()).layer(0)
    assert all(len(each.weights) == TOKENS.size for each in whole.values())
    for name, each in part.items():
        assert each.weights.equal(alone[name].weights) and len(each.weights) == 24 * windows


def test_a_model_that_overflows_is_refused(tmp_path: Path) -> None:
    checkpoint = open_model(models.write_model(tmp_path / "model", "llama", dtype="float32"))

    class Large:
        config, tensors = checkpoint.config, checkpoint.tensors

        def read(self, name: str) -> torch.Tensor:
            return checkpoint.read(name) * (1e30 if "layers.1.mlp" in name else 1)

    model = Decoder(Large(), architecture_of(checkpoint.config), CPU, torch.float32, TOKENS.shape[1])
    with pytest.raises(NumericError, match="the output of layer 1 holds NaN or Inf"):
        measured(model, reading(), tmp_path / "cache", Silent())


class Stops(Silent):
    """Interrupts at the n-th step."""

    def __init__(self, after: int) -> None:
        self.left = after

    def advance(self, amount: float = 1, text: str = "") -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_interrupted_anywhere_it_goes_on_to_the_same_bytes(
    kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every boundary on the disk, and with those of some layers alone."""
    folder = models.write_model(tmp_path / "model", "qwen3", num_hidden_layers=5)
    model, whole = decoder(folder), tmp_path / "whole"
    one = measured(model, reading(), whole, Silent())
    monkeypatch.setattr("r1quant.jobs.quantize.sensitivity.BOUNDARY_BYTES", TOKENS.size * models.HIDDEN * 4 * 5 / kept)
    stops = 0
    for after in range(100):
        try:
            other = measured(model, reading(), tmp_path / "parts", Stops(after // 2))
            break
        except KeyboardInterrupt:
            stops += 1
    assert stops > 5
    files = [{path.name: path.read_bytes() for path in each.folders[0].iterdir()} for each in (one, other)]
    assert files[0] == files[1] and sum("layer" in name for name in files[0]) == 5
    assert not any("input" in name or "gradient" in name for name in files[1])


def test_what_is_there_is_not_made_again(tmp_path: Path) -> None:
    folder = models.write_model(tmp_path / "model", "llama")
    model = decoder(folder)
    measured(model, reading(), tmp_path, Silent())
    measured(model, reading(), tmp_path, Stops(0))
    with pytest.raises(KeyboardInterrupt):
        measured(model, reading(of="that"), tmp_path, Stops(0))


def test_what_stays_in_the_cache_is_predicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With outputs in blocks of unequal number: 64, 128 and 32 of them, at most 100 in a block."""
    for module in (sensitivity, estimates):
        monkeypatch.setattr(module, "BLOCK", 100)
    folder = models.write_model(tmp_path / "model", "llama")
    cache, recipe = tmp_path / "cache", Recipe(guided=True, group_size=32, samples=len(TOKENS), seq_len=TOKENS.shape[1])
    measured(decoder(folder), reading(), cache, Silent())
    kept = sum(path.stat().st_size for path in cache.rglob("layer-*.safetensors"))
    plan = planner.make(open_model(folder), recipe, None)
    assert 0.8 * kept < plan.estimate.kept_bytes < kept < plan.estimate.cache_bytes


def test_two_at_once_make_it_once(tmp_path: Path) -> None:
    folder, notes = models.write_model(tmp_path / "model", "llama"), list[str]()

    class Notes(Silent):
        def note(self, line: str) -> None:
            notes.append(line)
            lock.close()

    cache = tmp_path / "cache"
    made = measured(decoder(folder), reading(), cache, Silent()).folders[0]
    lock = (made / "lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert measured(decoder(folder), reading(), cache, Notes()).folders[0] == made
    assert len(notes) == 1 and "waiting" in notes[0]


def test_several_draws_are_averaged(tmp_path: Path) -> None:
    folder = models.write_model(tmp_path / "model", "llama")
    model, cache = decoder(folder), tmp_path / "cache"
    one = measured(model, reading(), cache, Silent())
    three = measured(model, reading(), cache, Silent(), draws=3)
    assert three.folders[0] == one.folders[0] and len(set(three.folders)) == 3
    alone = [type(one)((each,)).layer(1) for each in three.folders]
    assert not alone[0]["mlp.up_proj"].weights.equal(alone[1]["mlp.up_proj"].weights)
    for name, mean in three.layer(1).items():
        assert torch.allclose(mean.weights, torch.stack([each[name].weights for each in alone]).sum(0) / 3)
        parts = zip(mean.covariance, *(each[name].covariance for each in alone), strict=True)
        assert all(torch.allclose(part, sum(others) / 3, atol=1e-9) for part, *others in parts)

"""SmoothQuant's factors are those of the paper, and move the spread from activations to weights."""

from __future__ import annotations

import pytest
import torch

from r1quant.engine.transforms import smooth
from r1quant.engine.transforms.folds import Fold
from tests.engine.transforms.conftest import Open
from tests.engine.transforms.test_folds import behind, folds_of, output, state_of

PLAIN = Fold("norm", ("linear",), torch.arange(2))


def test_the_factors_of_the_paper() -> None:
    """max|x| = 16, 2 and max|W| = 2, 1: s = sqrt(16) / sqrt(2) and sqrt(2) / sqrt(1)."""
    weight, peak = torch.tensor([[1.0, 0.5], [-2.0, 1.0]]), torch.tensor([16.0, 2.0])
    assert smooth.scale(weight, peak, PLAIN).tolist() == pytest.approx([8**0.5, 2**0.5])
    assert smooth.scale(weight, peak, PLAIN, 1.0).tolist() == [16, 2]
    assert smooth.scale(weight, peak, PLAIN, 0.0).tolist() == [0.5, 1]


def test_half_way_inputs_and_weights_are_equally_large() -> None:
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    peak = torch.linspace(0.1, 40, 64)
    scale = smooth.scale(weight, peak, Fold("norm", ("linear",), torch.arange(64)))
    assert torch.allclose(peak / scale, (weight * scale).abs().amax(0), rtol=1e-5)


def test_silent_channels_keep_theirs() -> None:
    weight, peak = torch.tensor([[1.0, 0.0]]), torch.tensor([0.0, 2.0])
    assert smooth.scale(weight, peak, PLAIN).tolist() == [1, 1]


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_other_exponents_are_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match=r"not within 0 \.\. 1"):
        smooth.scale(torch.ones(1, 2), torch.ones(2), PLAIN, alpha)


@pytest.mark.parametrize("family", ["llama-biased", "tiny-r1"])
def test_a_smoothed_layer_gives_the_same_output(model: Open, family: str) -> None:
    checkpoint = model(family)
    before, scales, noise = state_of(checkpoint), {}, torch.Generator().manual_seed(0)
    for stage, fold in folds_of(checkpoint).items():
        peak = torch.rand(len(fold.source), generator=noise) * 20 + 0.1
        scales[stage] = smooth.scale(torch.cat([before[f"{name}.weight"] for name in fold.consumers]), peak, fold)
        assert scales[stage].max() > 2 * scales[stage].min()
    expected = output(checkpoint, before)
    assert (output(checkpoint, behind(checkpoint, scales)) - expected).abs().max() < 1e-4 * expected.abs().max()

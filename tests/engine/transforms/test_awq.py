"""The AWQ search finds what it claims to: factors with which rounding costs the output less."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from r1quant.core.grid import Grid
from r1quant.engine.grids.rounding import nearest
from r1quant.engine.stats import gather
from r1quant.engine.transforms import awq
from r1quant.engine.transforms.folds import Fold
from tests.engine.transforms.conftest import Open, changed
from tests.engine.transforms.test_folds import behind, folds_of, output, state_of

CPU = torch.device("cpu")


def rounding(bits: int = 3, search: bool = True) -> awq.Round:
    def rounded(weight: torch.Tensor, importance: torch.Tensor) -> torch.Tensor:
        assert importance.mean() == pytest.approx(1)
        q = nearest(weight.contiguous().numpy(), Grid(bits, 16), importance.numpy(), search)
        return torch.from_numpy(q.dequantize())

    return rounded


def inputs(columns: int, spread: float, seed: int = 0) -> torch.Tensor:
    """Correlated, and a few channels far larger than the rest."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(256, columns, generator=draw)
    x = x @ (torch.eye(columns) + torch.randn(columns, columns, generator=draw) / columns)
    x[:, ::11] *= spread
    return x


def fold_of(columns: int) -> Fold:
    return Fold("norm", ("linear",), torch.arange(columns))


def weight(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("search", [True, False])
@pytest.mark.parametrize("spread", [1, 30])
def test_the_loss_is_the_error_of_the_output(spread: float, search: bool) -> None:
    """Of the choice and of the identity, computed from the inputs themselves."""
    x, w = inputs(64, spread), weight(48, 64)
    rounded = rounding(search=search)
    found = awq.search(w, gather([x], 64, CPU).hessian, fold_of(64), rounded)

    def measured(scale: torch.Tensor) -> float:
        importance = x.square().sum(0) / scale.square()
        back = rounded(w * scale, importance / importance.mean())
        return float(((x / scale) @ back.T - x @ w.T).double().square().sum())

    assert found.loss == pytest.approx(measured(found.scale), rel=1e-3)
    assert found.plain == pytest.approx(measured(torch.ones(64)), rel=1e-3)
    assert found.loss <= found.plain
    assert float(found.scale.log().mean()) == pytest.approx(0, abs=1e-5)
    if spread == 30:
        assert found.loss < 0.8 * found.plain


def test_channels_that_carry_much_get_the_larger_factors() -> None:
    x = inputs(64, 30)
    found = awq.search(weight(48, 64), gather([x], 64, CPU).hessian, fold_of(64), rounding(), x.abs().mean(0))
    assert found.alpha > 0
    large = torch.zeros(64, dtype=torch.bool)
    large[::11] = True
    assert found.scale[large].min() > 1.5 * found.scale[~large].max()


def test_the_identity_stays_where_nothing_is_better() -> None:
    """A grid so fine that rounding is exact, and one that any factor throws out of step."""
    w = torch.randint(-3, 4, (32, 64), generator=torch.Generator().manual_seed(0)).float()
    hessian = gather([inputs(64, 30)], 64, CPU).hessian
    found = awq.search(w, hessian, fold_of(64), lambda weight, importance: weight.round())
    assert (found.alpha, found.balanced, found.loss, found.plain) == (0, False, 0, 0)
    assert found.scale.equal(torch.ones(64))


def test_every_candidate_is_tried_once() -> None:
    seen = []

    def rounded(weight: torch.Tensor, importance: torch.Tensor) -> torch.Tensor:
        seen.append(weight.clone())
        return weight.round()

    awq.search(weight(16, 32), gather([inputs(32, 5)], 32, CPU).hessian, fold_of(32), rounded)
    assert len(seen) == 40
    assert all(not a.equal(b) for i, a in enumerate(seen) for b in seen[:i])


def test_only_so_many_rows_are_looked_at() -> None:
    shapes = []

    def rounded(weight: torch.Tensor, importance: torch.Tensor) -> torch.Tensor:
        shapes.append(weight.shape)
        return weight.round()

    awq.search(weight(100, 32), gather([inputs(32, 5)], 32, CPU).hessian, fold_of(32), rounded, rows=30)
    assert set(shapes) == {(25, 32)}


def test_silent_channels_and_weights_of_zero_are_left_finite() -> None:
    x, w = inputs(64, 30), weight(32, 64)
    x[:, [1, 2]], w[:, [2, 3]] = 0, 0
    found = awq.search(w, gather([x], 64, CPU).hessian, fold_of(64), rounding())
    assert torch.isfinite(found.scale).all() and found.scale.min() > 1e-3 and found.scale.max() < 1e3
    nothing = awq.search(w, torch.zeros(64, 64), fold_of(64), lambda weight, importance: weight.round())
    assert nothing.scale.equal(torch.ones(64))


def test_heads_of_a_group_share_their_factors(model: Open) -> None:
    fold = folds_of(model("llama"))["attention_out"]
    found = awq.search(weight(48, 64), gather([inputs(64, 30)], 64, CPU).hessian, fold, rounding())
    assert found.loss < found.plain
    assert found.scale[:16].equal(found.scale[16:32]) and found.scale[32:48].equal(found.scale[48:])


@pytest.mark.parametrize("family", ["llama-biased", "qwen2", "tiny-r1"])
def test_a_layer_rounded_behind_its_folds_is_nearer_to_itself(model: Open, family: str, tmp_path: Path) -> None:
    """Its linears behind the norms rounded to 3 bits: the layer's own output, with outliers in its norms."""
    norms = {}
    for norm in ("input_layernorm", "post_attention_layernorm"):
        name = f"model.layers.1.{norm}.weight"
        norms[name] = model(family).read(name).clone()
        norms[name][::9] *= 12
    checkpoint = changed(model(family), tmp_path / "m", norms, torch.float32)
    fold, state, rounded = folds_of(checkpoint), state_of(checkpoint), rounding(search=False)
    expected, scales = output(checkpoint, state), {}
    for stage in ("qkv", "gate_up"):
        pair = fold[stage]
        w = torch.cat([state[f"{name}.weight"] for name in pair.consumers])
        x = inputs(w.shape[1], 1) * state[f"{pair.producer}.weight"]
        scales[stage] = awq.search(w, gather([x], w.shape[1], CPU).hessian, pair, rounded).scale
    folded = behind(checkpoint, scales)
    assert (output(checkpoint, folded) - expected).abs().max() < 1e-4 * expected.abs().max()

    def wrong(tensors: dict[str, torch.Tensor]) -> float:
        found = dict(tensors)
        for pair in (fold["qkv"], fold["gate_up"]):
            for linear in pair.consumers:
                name = f"{linear}.weight"
                found[name] = rounded(tensors[name], torch.ones(tensors[name].shape[1]))
        return float((output(checkpoint, found) - expected).square().sum())

    assert wrong(folded) < 0.9 * wrong(state)


def test_importance_guides_the_scales_of_plain_rounding() -> None:
    """What the search rounds with: the error counted by importance falls, that counted evenly does not."""
    w, importance = weight(32, 64).numpy(), np.ones(64, np.float32)
    importance[::7] = 100
    even, guided = (nearest(w, Grid(3, 32), i, True).dequantize() for i in (None, importance))
    assert ((guided - w) ** 2 * importance).sum() < 0.95 * ((even - w) ** 2 * importance).sum()
    assert ((guided - w) ** 2).sum() > ((even - w) ** 2).sum()

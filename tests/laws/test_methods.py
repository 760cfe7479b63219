"""Every method gives a QLinear that holds its laws; GPTQ agrees with the algorithm as published."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from r1quant.core.grid import LARGEST_SCALE, SMALLEST_SCALE, Grid, round_scale
from r1quant.core.qlinear import QLinear
from r1quant.engine.grids.uniform import UniformRounding
from r1quant.engine.loss import loss_of
from r1quant.engine.methods import gptq, rtn
from r1quant.engine.methods.feedback import factor
from r1quant.engine.methods.method import RoundingOptions, Solved
from r1quant.engine.stats import Stats, gather

CPU = torch.device("cpu")
GRIDS = [
    Grid(bits, size, symmetric, dtype)
    for bits in (2, 3, 4, 8)
    for size in (16, 64, -1)
    for symmetric in (True, False)
    for dtype in ("portable", "float16")
]


def correlated(columns: int, tokens: int = 512, seed: int = 0) -> torch.Tensor:
    made = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=made) / columns**0.5 + torch.eye(columns)
    result: torch.Tensor = torch.randn(tokens, columns, generator=made) @ mix * torch.linspace(0.2, 3, columns)
    return result


def weight(rows: int, columns: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.02


def uniform_of(solved: Solved) -> QLinear:
    assert isinstance(solved.qlinear, QLinear)
    return solved.qlinear


def rounded(w: np.ndarray, grid: Grid, search: bool) -> QLinear:
    """To nearest, by the method without statistics."""
    return uniform_of(rtn.quantize(torch.from_numpy(w), None, grid, RoundingOptions(search)))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_results_are_valid_and_near(grid: Grid) -> None:
    w = weight(24, 128)
    stats = gather([correlated(128)], 128, CPU)
    plain = rounded(w.numpy(), grid, False)
    searched = rounded(w.numpy(), grid, True)
    solved = gptq.quantize(w, stats, grid, RoundingOptions())
    h = stats.hessian.double().numpy() / stats.tokens

    def loss(q: np.ndarray) -> float:
        e = (w.numpy() - q).astype(np.float64)
        return float(((e @ h) * e).sum())

    for q in (plain, searched, uniform_of(solved)):
        q.validate()
        assert q.contiguous
        assert q.symmetric or not grid.symmetric
        shipped = q.scale.astype(np.float32)
        assert np.array_equal(round_scale(shipped, grid.scale_dtype), shipped)
    squared = [float(np.square(w.numpy() - q.dequantize()).sum()) for q in (plain, searched)]
    assert squared[1] <= squared[0] * 1.0001
    assert loss(solved.qlinear.dequantize()) < loss(searched.dequantize())
    measured = loss_of(w, solved.qlinear, stats)
    assert measured.loss.sum() == pytest.approx(loss(solved.qlinear.dequantize()), rel=1e-3)
    energy = w.double().numpy()
    assert measured.energy.sum() == pytest.approx(float(((energy @ h) * energy).sum()), rel=1e-3)


def published_gptq(w: np.ndarray, h: np.ndarray, chosen: UniformRounding, damping: float) -> np.ndarray:
    """Frantar et al. 2022, algorithm 1, column by column in float64, with a static act-order."""
    w, h = w.astype(np.float64).copy(), h.astype(np.float64).copy()
    h[np.diag_indices_from(h)] += damping * np.diag(h).mean()
    order = np.argsort(np.diag(h), kind="stable")[::-1]
    w, h = w[:, order], h[np.ix_(order, order)]
    inverse = np.linalg.cholesky(np.linalg.inv(h)).T
    codes = np.empty(w.shape, np.uint8)
    for j in range(w.shape[1]):
        g = chosen.group[order[j]]
        s, z = chosen.scale[:, g].astype(np.float64), chosen.zero[:, g].astype(np.float64)
        codes[:, j] = np.clip(np.rint(w[:, j] / s) + z, 0, chosen.top)
        error = (w[:, j] - (codes[:, j] - z) * s) / inverse[j, j]
        w[:, j:] -= error[:, None] * inverse[j, j:][None]
    natural = np.empty_like(codes)
    natural[:, order] = codes
    return natural


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("columns", [64, 192, 320])
def test_gptq_is_the_published_algorithm(columns: int, symmetric: bool) -> None:
    """The inverse-free form gives the codes of the original but for ties that float32 breaks the other way."""
    grid = Grid(4, 32, symmetric)
    w = weight(48, columns)
    stats = gather([correlated(columns)], columns, CPU)
    solved = gptq.quantize(w, stats, grid, RoundingOptions())
    q = uniform_of(solved)
    chosen = UniformRounding(q.scale.astype(np.float32), q.zero, q.group, q.bits)
    assert solved.damping is not None and solved.rows_nearest is not None
    expected = published_gptq(w.numpy(), stats.hessian.numpy(), chosen, solved.damping)
    rows = ~solved.rows_nearest
    assert rows.mean() > 0.9
    assert (q.codes[rows] == expected[rows]).mean() > 0.998


def test_stacked_rows_are_independent() -> None:
    stats = gather([correlated(64)], 64, CPU)
    a, b = weight(8, 64, 2), weight(16, 64, 3)
    stacked = uniform_of(gptq.quantize(torch.cat([a, b]), stats, Grid(4, 32), RoundingOptions()))
    alone = uniform_of(gptq.quantize(b, stats, Grid(4, 32), RoundingOptions()))
    assert np.array_equal(stacked.rows(8, 24).scale, alone.scale)
    assert (stacked.rows(8, 24).codes == alone.codes).mean() > 0.999


@given(st.floats(0, 1))
@settings(deadline=None, max_examples=20)
def test_shrinkage_is_of_all_but_the_diagonal(share: float) -> None:
    h = gather([correlated(64)], 64, CPU).hessian
    shrunk = (1 - share) * h + share * torch.diag(h.diagonal())
    found, expected = factor(h, 0.01, True, shrinkage=share), factor(shrunk, 0.01, True)
    assert found is not None and expected is not None
    assert np.array_equal(found.order, expected.order)
    torch.testing.assert_close(found.lower, expected.lower, rtol=1e-4, atol=1e-3)


def test_nothing_is_fed_back_once_all_correlations_are_left_out() -> None:
    stats, w, grid = gather([correlated(64)], 64, CPU), weight(16, 64), Grid(4, 32)
    alone = uniform_of(gptq.quantize(w, stats, grid, RoundingOptions(shrinkage=1.0)))
    rounding = UniformRounding(alone.scale.astype(np.float32), alone.zero, alone.group, alone.bits)
    assert np.array_equal(alone.codes, rounding.nearest(w.numpy()))
    assert not np.array_equal(alone.codes, uniform_of(gptq.quantize(w, stats, grid, RoundingOptions())).codes)


def test_dead_columns_are_counted_and_rounded_to_nearest() -> None:
    x = correlated(64)
    x[:, [3, 40]] = 0
    w = weight(16, 64)
    stats = gather([x], 64, CPU)
    assert int(stats.dead.sum()) == 2
    q = uniform_of(gptq.quantize(w, stats, Grid(4, 32), RoundingOptions()))
    nearest = np.clip(np.rint(w.numpy()[:, 40] / q.scale[:, 1].astype(np.float32)) + 8, 0, 15)
    assert np.array_equal(q.codes[:, 40], nearest)


def test_damping_rises_until_the_hessian_factors() -> None:
    x = correlated(64, tokens=8)  # rank 8: singular
    solved = gptq.quantize(weight(16, 64), gather([x], 64, CPU), Grid(4, 32), RoundingOptions(damping=0.0))
    assert not solved.fallback
    assert solved.damping is not None and solved.damping > 0


def test_a_hessian_that_never_factors_falls_back_to_nearest() -> None:
    h = -torch.eye(64)
    h[0, 0] = 100.0
    solved = gptq.quantize(weight(16, 64), Stats(h, 1), Grid(4, 32), RoundingOptions())
    assert solved.fallback
    assert solved.rows_nearest is not None and solved.rows_nearest.all()
    solved.qlinear.validate()


def test_no_row_is_worse_than_rounding_to_nearest() -> None:
    """A row of outliers that the grid clips: feedback only makes it worse there."""
    w = weight(64, 128)
    w[::4, ::7] *= 40
    stats = gather([correlated(128)], 128, CPU)
    grid = Grid(2, 64)
    solved = gptq.quantize(w, stats, grid, RoundingOptions())
    q = uniform_of(solved)
    plain = np.clip(np.rint(w.numpy() / np.repeat(q.scale.astype(np.float32), 64, 1)) + 2, 0, 3)
    nearest = (plain - 2) * np.repeat(q.scale.astype(np.float32), 64, 1)
    assert solved.damping is not None
    h = stats.hessian.double().numpy() + solved.damping * float(stats.hessian.diagonal().mean()) * np.eye(128)

    def loss(e: np.ndarray) -> np.ndarray:
        result: np.ndarray = ((e.astype(np.float64) @ h) * e).sum(1)
        return result

    ours, theirs = loss(w.numpy() - q.dequantize()), loss(w.numpy() - nearest)
    assert (ours <= theirs * 1.001).all()


def test_all_zero_weights() -> None:
    q = rounded(np.zeros((16, 64), np.float32), Grid(4, 32), True)
    q.validate()
    assert not q.dequantize().any()


@given(st.floats(-70000, 70000, allow_nan=False, width=32))
@settings(max_examples=200, deadline=None)
def test_portable_scales_are_exact_in_both_halves(value: float) -> None:
    scale = round_scale(np.array([value], np.float32), "portable")
    assert scale == scale.astype(np.float16).astype(np.float32)
    assert scale == torch.from_numpy(scale).bfloat16().float().numpy()
    assert SMALLEST_SCALE <= abs(scale[0]) <= LARGEST_SCALE["portable"]
    if SMALLEST_SCALE <= abs(value) <= LARGEST_SCALE["portable"]:
        assert abs(scale[0] - np.float32(value)) <= abs(value) * 2.0**-8


def test_zero_points_respect_the_format() -> None:
    w = np.abs(weight(32, 64).numpy())  # all positive: the best zero point is 0
    assert (rounded(w, Grid(4, 32, False, zero_min=0), True).zero == 0).any()
    assert rounded(w, Grid(4, 32, False, zero_min=1), True).zero.min() == 1


def test_bfloat16_inputs_give_the_exact_hessian() -> None:
    x = correlated(96).bfloat16()
    found = gather([x[:100], x[100:]], 96, CPU)
    exact = x.double().T @ x.double()
    assert found.tokens == 512
    assert (found.hessian.double() - exact).abs().max() / exact.abs().max() < 1e-5
    assert torch.linalg.eigvalsh(found.hessian.double()).min() > 0


def test_statistics_notice_nan() -> None:
    x = correlated(32)
    x[5, 7] = float("nan")
    assert not gather([x], 32, CPU).finite


@pytest.mark.parametrize("field", ["codes", "zero", "scale", "group"])
def test_validate_catches_a_broken_field(field: str) -> None:
    q = rounded(weight(8, 64).numpy(), Grid(3, 32), False)
    q.validate()
    array = getattr(q, field).copy()
    array[(0,) * array.ndim] = {"codes": 8, "zero": 8, "scale": np.inf, "group": 9}[field]
    broken = {"codes": q.codes, "scale": q.scale, "zero": q.zero, "group": q.group} | {field: array}
    with pytest.raises(ValueError, match=field):
        type(q)(**broken, bits=3).validate()

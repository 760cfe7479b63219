"""Feedback over rows and columns, and the target that makes up for what came before, against plain arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from r1quant.core.grid import Grid
from r1quant.engine.correction import correction
from r1quant.engine.grids.uniform import UniformRounding
from r1quant.engine.loss import loss_of
from r1quant.engine.methods import gptq
from r1quant.engine.methods.method import RoundingOptions, Solved
from r1quant.engine.stats import HessianAccumulator, Stats, gather
from tests.laws.test_methods import CPU, correlated, uniform_of, weight


def covariance(rows: int, seed: int = 5) -> torch.Tensor:
    x = correlated(rows, 4 * rows, seed)
    return x.T @ x / len(x)


def unit_lower(h: np.ndarray) -> np.ndarray:
    lower = np.linalg.cholesky(h)
    result: np.ndarray = lower / np.diag(lower)
    return result


def by_the_book(
    w: np.ndarray, h_in: np.ndarray, h_out: np.ndarray, chosen: UniformRounding, damping: tuple[float, float]
) -> np.ndarray:
    """Tseng et al. 2025, "Model-Preserving Adaptive Rounding", weight by weight in float64."""
    w, orders, factors = w.astype(np.float64), [], []
    for h, share in zip((h_in, h_out), damping, strict=True):
        h = h.astype(np.float64) + share * np.diag(h).mean() * np.eye(len(h))
        order = np.argsort(np.diag(h), kind="stable")
        orders.append(order)
        factors.append(unit_lower(h[np.ix_(order, order)]))
    columns, rows = orders
    lower_in, lower_out = factors
    n, k = w.shape
    codes, wrong = np.zeros((n, k), np.uint8), np.zeros((n, k))
    for j in range(k - 1, -1, -1):
        fed = wrong[:, j + 1 :] @ lower_in[j + 1 :, j]
        left = np.zeros(n)
        for i in range(n - 1, -1, -1):
            a, b = rows[i], columns[j]
            g = chosen.group[b]
            s, z = float(chosen.scale[a, g]), float(chosen.zero[a, g])
            aim = w[a, b] + fed[i] + left[i + 1 :] @ lower_out[i + 1 :, i]
            codes[a, b] = np.clip(np.rint(aim / s) + z, 0, chosen.top)
            wrong[i, j] = w[a, b] - (codes[a, b] - z) * s
            left[i] = wrong[i, j] + fed[i]
    return codes


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("columns", [64, 192])
def test_it_is_the_published_recursion(columns: int, bits: int) -> None:
    grid, w, cov = Grid(bits, 32), weight(40, columns), covariance(40)
    stats = gather([correlated(columns)], columns, CPU)
    stats = Stats(stats.hessian, stats.tokens, outputs=(cov,))
    q = uniform_of(gptq.quantize(w, stats, grid, RoundingOptions(row_damping=0.1)))
    chosen = UniformRounding(q.scale.astype(np.float32), q.zero, q.group, q.bits)
    expected = by_the_book(w.numpy(), stats.hessian.numpy(), cov.numpy(), chosen, (0.01, 0.1))
    assert (q.codes == expected).mean() > 0.995


def test_outputs_that_do_not_matter_to_each_other_are_plain_gptq() -> None:
    stats = gather([correlated(64)], 64, CPU)
    coupled = Stats(stats.hessian, stats.tokens, outputs=(torch.eye(24), torch.eye(16) * 3))
    plain, other = (gptq.quantize(weight(40, 64), each, Grid(3, 32), RoundingOptions()) for each in (stats, coupled))
    assert plain.rows_nearest is not None
    rows = ~plain.rows_nearest
    assert rows.any() and np.array_equal(uniform_of(plain).codes[rows], uniform_of(other).codes[rows])


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_it_lowers_what_it_minimises_and_says_how_much_is_left(bits: int) -> None:
    w, grid, cov = weight(96, 128), Grid(bits, 32), covariance(96)
    stats = gather([correlated(128)], 128, CPU)
    blocks = cov[:48, :48].contiguous(), cov[48:, 48:].contiguous()
    coupled = Stats(stats.hessian, stats.tokens, outputs=blocks)

    def cost(solved: Solved) -> float:
        e = (w.numpy() - solved.qlinear.dequantize()).astype(np.float64)
        middle = np.zeros((96, 96))
        middle[:48, :48], middle[48:, 48:] = blocks[0].numpy(), blocks[1].numpy()
        return float(np.trace(middle @ e @ stats.hessian.double().numpy() @ e.T)) / 2 / stats.tokens

    plain, guided = (gptq.quantize(w, each, grid, RoundingOptions()) for each in (stats, coupled))
    assert cost(guided) < 0.8 * cost(plain)
    predicted = loss_of(w, guided.qlinear, coupled).predicted_kl
    assert loss_of(w, plain.qlinear, stats).predicted_kl is None and predicted is not None
    assert predicted.sum() == pytest.approx(cost(guided), rel=1e-3)


def test_the_target_makes_up_for_inputs_that_have_changed() -> None:
    """With as many tokens as one likes and a fine grid, the outputs are those of the inputs as they were."""
    x, w = correlated(64, 2048), weight(24, 64)
    seen = x + 0.3 * correlated(64, 2048, seed=9)
    best = torch.linalg.lstsq(seen.double(), (x @ w.T).double()).solution.T
    sums = HessianAccumulator(64, CPU)
    for start in range(0, 2048, 512):
        part = slice(start, start + 512)
        sums.add(seen[part], (x[part] - seen[part]) @ w.T)
    assert sums.drift is not None
    moved = correction(sums.stats.hessian, sums.drift, ridge=0.0)
    assert torch.allclose((w + moved).double(), best, atol=1e-4)
    aimed, plain = (gptq.quantize(target, sums.stats, Grid(8, 16), RoundingOptions()) for target in (w + moved, w))

    def left(solved: Solved) -> float:
        return float((x @ w.T - seen @ torch.from_numpy(solved.qlinear.dequantize()).T).square().sum())

    least = float((x.double() @ w.T.double() - seen.double() @ best.T).square().sum())
    assert left(aimed) < 1.001 * least < 0.9 * left(plain)


def test_weights_of_tokens_are_relative_and_rows_of_bfloat16_stay_positive() -> None:
    x, counted = correlated(32, 300), torch.rand(300) + 0.1
    alike, scaled = HessianAccumulator(32, CPU, counted), HessianAccumulator(32, CPU, counted * 7)
    for sums in (alike, scaled):
        sums.add(x[:100].reshape(4, 25, 32))
        sums.add(x[100:])
    expected = (x * (counted / counted.mean())[:, None]).T @ x
    for sums in (alike, scaled):
        assert torch.allclose(sums.stats.hessian, expected, rtol=1e-4, atol=1e-3) and sums.stats.tokens == 300
    halved = HessianAccumulator(32, CPU, counted)
    halved.add(x.bfloat16())
    assert float(torch.linalg.eigvalsh(halved.stats.hessian.double()).min()) > 0


def test_tokens_beyond_those_that_are_weighted_have_the_mean_weight() -> None:
    x, weights = correlated(16, 50), torch.rand(30) + 0.1
    sums = HessianAccumulator(16, CPU, weights)
    for chunk in x.split(20):
        sums.add(chunk, chunk[:, :4])
    counted = torch.cat([weights / weights.mean(), torch.ones(20)])
    assert sums.stats.tokens == 50
    assert torch.allclose(sums.stats.hessian, (x * counted[:, None]).T @ x, rtol=1e-4, atol=1e-4)
    assert sums.drift is not None
    assert torch.allclose(sums.drift, (x[:, :4] * counted[:, None]).T @ x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("columns", [1, 2, 3, 5, 64, 131])
def test_a_sum_is_whole_however_its_columns_divide(columns: int) -> None:
    """Also where it goes on after it was looked at."""
    x, sums = correlated(max(columns, 2), 60)[:, :columns].contiguous(), HessianAccumulator(columns, CPU)
    for count, chunk in enumerate(x.split(20), 1):
        sums.add(chunk)
        seen = x[: 20 * count]
        assert torch.allclose(sums.stats.hessian, seen.T @ seen, rtol=1e-4, atol=1e-4)

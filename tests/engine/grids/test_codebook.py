"""Rounding to the code books of the I-quants: nothing is nearer, feedback helps, and what comes out can be packed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from r1quant.core.blocklinear import BlockLinear
from r1quant.core.blocktypes import BLOCK_TYPES, BlockGrid
from r1quant.engine.grids import codebook_scales as scales
from r1quant.engine.grids.blocks import fit
from r1quant.engine.grids.codebook import CodebookRounding, entries_of, norms_of
from r1quant.engine.grids.codebook_kernels import EVEN, NONE
from r1quant.engine.grids.rounding import nearest
from r1quant.engine.methods import gptq
from r1quant.engine.methods.feedback import coupling_of, factor, round_columns
from r1quant.engine.methods.method import RoundingOptions
from r1quant.engine.stats import Stats, gather
from r1quant.formats.gguf import superblocks
from tests.engine.test_coupled import covariance
from tests.laws.test_methods import CPU, correlated, weight

WITH_BOOK = [name for name, of in BLOCK_TYPES.items() if of.book is not None]
EVERY = pytest.mark.parametrize("type", WITH_BOOK)
SIGNS = np.array(np.meshgrid(*[(1.0, -1.0)] * 8)).reshape(8, -1).T  # [256, 8]


def rounding_of(w: np.ndarray, type: str, importance: np.ndarray | None, search: bool = True) -> CodebookRounding:
    rounding = fit(w, BlockGrid(type), importance, search)
    assert isinstance(rounding, CodebookRounding)
    return rounding


def least_cost(x: np.ndarray, counted: np.ndarray, type: str, variant: int) -> float:
    """Of eight columns on scale 1, by trying every combination of entries and signs."""
    book = entries_of(type)
    values = book.values[variant].T.astype(np.float64)  # [E, width]
    signs = SIGNS[:1] if book.signs == NONE else SIGNS
    if book.signs == EVEN:
        signs = signs[(signs < 0).sum(1) % 2 == 0]
    costs = np.zeros(len(signs))
    for start in range(0, 8, values.shape[1]):
        part = slice(start, start + values.shape[1])
        each = np.square(values) @ counted[part] - 2 * signs[:, part] @ (counted[part] * x[part] * values).T
        costs += each.min(1) + counted[part] @ np.square(x[part])
    return float(costs.min())


def cost_of(w: np.ndarray, q: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Of each eight columns."""
    squared: np.ndarray = (counted * np.square(w.astype(np.float64) - q)).reshape(len(w), -1, 8).sum(2)
    return squared


def packed_and_back(q: BlockLinear) -> bool:
    q.validate()
    return np.array_equal(superblocks.unpack(superblocks.pack(q), q.type).codes, q.codes)


@EVERY
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1 << 30), even=st.booleans())
def test_no_combination_is_nearer(type: str, seed: int, even: bool) -> None:
    rng = np.random.default_rng(seed)
    w = rng.standard_t(5, (1, 256)).astype(np.float32)
    counted = np.ones(256, np.float32) if even else rng.lognormal(0, 1, 256).astype(np.float32)
    rounding = rounding_of(w, type, counted)
    q = rounding.linear(rounding.nearest(w))
    assert packed_and_back(q)
    scale = np.repeat(rounding.scale[0], q.of.group // 8).astype(np.float64)
    variant = np.repeat(rounding.variant[0], q.of.group // 8)
    found = cost_of(w, q.dequantize(), counted)[0]
    for o in range(32):
        part = slice(8 * o, 8 * o + 8)
        least = least_cost(w[0, part] / scale[o], counted[part], type, variant[o]) * scale[o] ** 2
        assert found[o] == pytest.approx(least, rel=1e-3, abs=1e-6)


@EVERY
@pytest.mark.parametrize("act_order", [False, True])
def test_without_correlation_feedback_is_plain_rounding(type: str, act_order: bool) -> None:
    w, h = weight(16, 512), torch.linspace(1, 9, 512).diag()
    rounding = rounding_of(w.numpy(), type, h.diagonal().numpy())
    factored = factor(h, 0.0, act_order, rounding.run)
    assert factored is not None
    done = round_columns(w[:, torch.from_numpy(factored.order)], factored, rounding, None)
    assert (done.codes == rounding.nearest(w.numpy())).mean() > 0.999  # but for ties


@EVERY
@pytest.mark.parametrize("coupled", [False, True])
def test_feedback_leaves_less_than_half_and_errors_are_those_of_the_values(type: str, coupled: bool) -> None:
    w, h = weight(40, 256), correlated_hessian(256)
    rounding = rounding_of(w.numpy(), type, None)
    factored = factor(h, 0.01, True, rounding.run)
    assert factored is not None
    outputs = (covariance(24), covariance(16))
    coupling = coupling_of(outputs, 0.2) if coupled else None
    ordered = w[:, torch.from_numpy(factored.order)]
    done = round_columns(ordered, factored, rounding, coupling)
    q = rounding.linear(done.codes)
    assert packed_and_back(q)
    values = q.dequantize()
    assert np.array_equal(done.error.numpy(), ordered.numpy() - values[:, factored.order])
    plain = rounding.linear(rounding.nearest(w.numpy())).dequantize()
    rows = torch.block_diag(*outputs).numpy() if coupled else np.eye(40)

    def loss(v: np.ndarray) -> float:
        e = (w.numpy() - v).astype(np.float64)
        return float(np.trace(rows @ e @ h.double().numpy() @ e.T))

    assert loss(values) < 0.5 * loss(plain)


def correlated_hessian(columns: int) -> torch.Tensor:
    """Of inputs that lie near a subspace of an eighth of their width."""
    made = torch.Generator().manual_seed(3)
    x = torch.randn(4 * columns, columns // 8, generator=made) @ torch.randn(columns // 8, columns, generator=made)
    x = 0.5 * x + torch.randn(x.shape, generator=made)
    return x.T @ x / len(x)


@EVERY
@pytest.mark.parametrize("s", [0.002, 0.02, 0.1, 0.5, 2, 30])
def test_the_loss_of_eight_columns_is_known_on_every_scale(type: str, s: float) -> None:
    rng, book = np.random.default_rng(5), entries_of(type)
    x, counted = rng.standard_normal(256).astype(np.float32), rng.lognormal(0, 1, 256).astype(np.float32)
    books, width, size = book.values.shape
    chains = np.empty((books, 32, 3, 8 // width * scales.CORNERS), np.float32)
    lengths, along = np.zeros((books, 32), np.int64), np.empty(size, np.float32)
    corners, merged = np.empty((3, scales.CORNERS), np.float32), np.empty(chains.shape[2:], np.float32)
    args = (book.values, *norms_of(book, counted), book.signs, chains, lengths, along, along.copy(), corners, merged)
    scales.chains_of(x, counted, *args)
    approximate = book.signs == EVEN and width == 4  # which of two tuples has a sign turned is guessed
    for o in range(32):
        part = slice(8 * o, 8 * o + 8)
        for v in range(books):
            scales.sum_up(chains[v, o], lengths[v, o])
            w, b, _ = chains[v, o, :, scales.corner_for(chains[v, o], lengths[v, o], s)].astype(np.float64)
            found = counted[part] @ np.square(x[part], dtype=np.float64) + s * s * w - 2 * s * b
            least = least_cost(x[part] / s, counted[part], type, v) * s * s
            assert found >= least * 0.999
            assert found <= least * (1.5 if approximate else 1.001)


@EVERY
def test_the_scales_are_better_than_any_that_were_drawn(type: str) -> None:
    rng = np.random.default_rng(7)
    w, counted = rng.standard_normal((6, 256)).astype(np.float32), rng.lognormal(0, 1, 256).astype(np.float32)
    chosen = nearest(w, BlockGrid(type), counted, True)
    assert isinstance(chosen, BlockLinear) and chosen.scales is not None
    loss = cost_of(w, chosen.dequantize(), counted).sum(1)
    rounding = rounding_of(w, type, counted)
    low, high = chosen.of.scales or (0, 0)
    for _ in range(30):
        d = (chosen.d * rng.uniform(0.7, 1.4, chosen.d.shape)).astype(np.float16)
        ratio = chosen.scales + rng.integers(-1, 2, chosen.scales.shape)
        empty = BlockLinear(type, rounding.empty.codes, d, np.clip(ratio, low, high).astype(np.int8))
        other = CodebookRounding(empty, empty.scale, rounding.variant, counted)
        q = other.linear(other.nearest(w))
        assert (cost_of(w, q.dequantize(), counted).sum(1) >= loss * 0.999).all()


@EVERY
@pytest.mark.parametrize("search", [False, True])
def test_zeros_are_rounded_to_something_that_can_be_packed(type: str, search: bool) -> None:
    w = weight(6, 512, 9).numpy()
    w[0], w[1, :256], w[2, 64:96], w[3, 7::8] = 0, 0, 0, 0
    importance = np.ones(512, np.float32)
    importance[100:140] = 0
    rounding = rounding_of(w, type, importance, search)
    codes = rounding.nearest(w)
    q = rounding.linear(codes)
    assert packed_and_back(q)
    values = q.dequantize()
    assert not values[0].any() and not values[1, :256].any()
    assert np.square(values - w).sum() < 0.4 * np.square(w).sum()


@EVERY
def test_a_method_rounds_to_it_whatever_the_statistics(type: str) -> None:
    w, x = weight(24, 256), correlated(256)
    x[:, 40:60] = 0  # dead columns
    stats = gather([x], 256, CPU)
    for seen in (stats, Stats(stats.hessian, stats.tokens, (covariance(24),)), gather([x[:1] * 0], 256, CPU)):
        solved = gptq.quantize(w, seen, BlockGrid(type), RoundingOptions())
        assert isinstance(solved.qlinear, BlockLinear) and packed_and_back(solved.qlinear)
        assert np.isfinite(solved.qlinear.dequantize()).all()


def test_an_order_keeps_runs_together() -> None:
    h = torch.linspace(1, 2, 32).flip(0).diag()
    h[12, 12] = 100
    factored = factor(h, 0.01, True, 8)
    assert factored is not None
    assert factored.order.tolist() == [*range(24, 32), *range(16, 24), *range(8), *range(8, 16)]
    plain = factor(h, 0.01, False, 8)
    assert plain is not None and plain.order.tolist() == [*range(24, 32), *range(16, 24), *range(8, 16), *range(8)]

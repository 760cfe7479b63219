"""Rounding to code books: as the uniform grid rounds where they are one, and to the nearest of any values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from r1quant.core.grid import Grid
from r1quant.core.levels import LevelLinear
from r1quant.engine.grids.levels import LevelRounding
from r1quant.engine.grids.uniform import UniformRounding
from r1quant.engine.grids.uniform import fit as fit_uniform
from r1quant.engine.methods.feedback import coupling_of, factor, round_columns
from r1quant.engine.stats import gather
from tests.engine.test_coupled import covariance
from tests.laws.test_methods import CPU, correlated, weight


def both(w: np.ndarray, symmetric: bool) -> tuple[UniformRounding, LevelRounding]:
    """The uniform grid of 4 bits for a weight, and the same values as a code book with offsets."""
    uniform = fit_uniform(w, Grid(4, 32, symmetric), None, True)
    offset = -uniform.zero.astype(np.float32) * uniform.scale
    return uniform, LevelRounding("any", np.arange(16, dtype=np.float32), uniform.scale, offset, uniform.group)


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_code_book_of_equal_steps_rounds_as_the_uniform_grid(symmetric: bool, coupled: bool) -> None:
    """But for ties, and what float32 makes of the offset."""
    w, stats = weight(40, 192), gather([correlated(192)], 192, CPU)
    factored = factor(stats.hessian, 0.01, True)
    assert factored is not None
    ordered = w[:, torch.from_numpy(factored.order)].contiguous()
    coupling = coupling_of((covariance(24), covariance(16)), 0.2) if coupled else None
    uniform, levels = both(w.numpy(), symmetric)
    one, other = (round_columns(ordered, factored, rounding, coupling) for rounding in (uniform, levels))
    assert (one.codes == other.codes).mean() > 0.99
    values = levels.linear(other.codes).dequantize()[:, factored.order]
    assert np.allclose(other.error.numpy(), ordered.numpy() - values, atol=1e-7), "the error is that of the values"


def test_without_correlation_feedback_is_plain_rounding() -> None:
    w = weight(16, 64)
    factored = factor(torch.eye(64), 0.01, False)
    assert factored is not None
    _, levels = both(w.numpy(), False)
    ordered = w[:, torch.from_numpy(factored.order)].contiguous()
    assert np.array_equal(round_columns(ordered, factored, levels, None).codes, levels.nearest(w.numpy()))


FLOATS = st.floats(-8, 8, width=32)


@given(
    st.lists(FLOATS, min_size=2, max_size=20, unique=True),
    arrays.arrays(np.float32, (3, 8), elements=FLOATS),
    arrays.arrays(np.float32, (3, 2), elements=st.sampled_from([0.0, -0.5, 0.25, 1.0, 3.0])),
    arrays.arrays(np.float32, (3, 2), elements=st.sampled_from([0.0, 1.5])),
)
@settings(max_examples=100, deadline=None)
def test_every_weight_gets_the_nearest_value(
    levels: list[float], w: np.ndarray, scale: np.ndarray, offset: np.ndarray
) -> None:
    """Also if scales are negative or 0; and what is stored of a linear is all of it."""
    group = (np.arange(8) // 4).astype(np.int32)
    rounding = LevelRounding("any", np.array(sorted(levels), np.float32), scale, offset, group)
    q = rounding.linear(rounding.nearest(w))
    q.validate()
    possible = rounding.levels[:, None, None] * scale[:, group] + offset[:, group]
    nearest = np.abs(possible - w).min(0)
    assert np.allclose(np.abs(q.dequantize() - w), nearest, atol=1e-5)
    again = LevelLinear.restore(q.arrays())
    assert again.kind == "any" and np.array_equal(again.dequantize(), q.dequantize())
    assert np.array_equal(q.rows(1, 3).dequantize(), q.dequantize()[1:3])


@pytest.mark.parametrize(
    ("field", "value", "law"),
    [
        ("codes", 3, "codes must name levels"),
        ("levels", np.inf, "levels must be finite"),
        ("scale", np.nan, "scale must be finite"),
        ("offset", np.inf, "offset must be finite"),
        ("group", 2, "group must name a group of scale"),
    ],
)
def test_validate_catches_a_broken_field(field: str, value: float, law: str) -> None:
    fields: dict[str, Any] = {
        "codes": np.zeros((4, 8), np.uint8),
        "levels": np.array([-1, 0, 1], np.float32),
        "scale": np.ones((4, 2), np.float32),
        "offset": np.zeros((4, 2), np.float32),
        "group": (np.arange(8) // 4).astype(np.int32),
    }
    LevelLinear("any", **fields).validate()
    fields[field][(0,) * fields[field].ndim] = value
    with pytest.raises(ValueError, match=law):
        LevelLinear("any", **fields).validate()

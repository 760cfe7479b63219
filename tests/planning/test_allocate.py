"""The best of all choices within a budget, against trying every one of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1quant.planning.allocate import LIMIT, Solution, solve

Groups = list[list[tuple[float, int]]]


@st.composite
def problems(draw: st.DrawFn) -> tuple[Groups, int]:
    """Candidates with any losses and sizes, many of them equal, and a budget that the smallest ones fit."""
    loss = st.one_of(st.integers(0, 6).map(float), st.floats(0, 1, allow_subnormal=False), st.floats(-1e-3, 1e3))
    size = st.one_of(st.integers(0, 8), st.integers(1, 10**10))
    groups = draw(st.lists(st.lists(st.tuples(loss, size), min_size=1, max_size=5), min_size=1, max_size=6))
    least = sum(min(size for _, size in group) for group in groups)
    most = sum(max(size for _, size in group) for group in groups)
    return groups, draw(st.integers(least, most + 1))


def solved(groups: Groups, budget: int, limit: int = LIMIT) -> Solution:
    losses = [[loss for loss, _ in group] for group in groups]
    sizes = [[size for _, size in group] for group in groups]
    found = solve(losses, sizes, budget, limit)
    taken = [group[k] for group, k in zip(groups, found.chosen, strict=True)]
    assert found.nbytes == sum(size for _, size in taken) <= budget
    assert found.loss == pytest.approx(math.fsum(loss for loss, _ in taken), rel=1e-12, abs=1e-12)
    return found


def best(groups: Groups, budget: int) -> float:
    """Of every choice there is."""
    return min(
        math.fsum(loss for loss, _ in chosen)
        for chosen in itertools.product(*groups)
        if sum(size for _, size in chosen) <= budget
    )


@given(problems())
@settings(max_examples=300, deadline=None)
def test_nothing_within_the_budget_is_better(problem: tuple[Groups, int]) -> None:
    groups, budget = problem
    found = solved(groups, budget)
    assert found.loss == pytest.approx(best(groups, budget), rel=1e-9, abs=1e-9)
    assert found.gap == 0


@given(problems(), st.integers(1, 4))
@settings(max_examples=150, deadline=None)
def test_what_is_not_looked_at_is_bounded(problem: tuple[Groups, int], limit: int) -> None:
    """With next to no memory the answer may be worse, and says by how much at most."""
    groups, budget = problem
    found, least = solved(groups, budget, limit), best(groups, budget)
    tolerance = 1e-9 * max(1.0, abs(least), abs(found.loss))
    assert found.bound - tolerance <= least <= found.loss + tolerance
    assert found.gap == max(0.0, found.loss - found.bound)


def model(layers: int, bits: Sequence[int], seed: int, ragged: int) -> Groups:
    """The four groups of a layer as large as in an 8B model, errors falling by four a bit, sensitivities of any size.

    ragged: up to how many bytes are added to each size, so that no sums are equal.
    """
    rng = np.random.default_rng(seed)
    groups = []
    for _ in range(layers):
        for weights in (6144 * 4096, 4096 * 4096, 2 * 12288 * 4096, 4096 * 12288):
            sensitivity = weights * float(np.exp(rng.normal(0, 1)))
            extra = rng.integers(0, ragged + 1, len(bits))
            groups.append(
                [
                    (sensitivity * 4.0**-b * float(np.exp(rng.normal(0, 0.1))), weights // 64 * (8 * b + 1) + int(more))
                    for b, more in zip(bits, extra, strict=True)
                ]
            )
    return groups


@pytest.mark.parametrize("bits", [(4, 8), (2, 3, 4, 8), (2, 3, 4, 5, 6, 7, 8)], ids=str)
@pytest.mark.parametrize("ragged", [0, 5000])
def test_a_model_of_36_layers_is_solved_to_the_end(bits: tuple[int, ...], ragged: int) -> None:
    groups = model(36, bits, len(bits), ragged)
    least, most = (sum(pick(size for _, size in group) for group in groups) for pick in (min, max))
    losses = []
    for share in (0.0, 0.1, 0.5, 0.9, 1.0):
        found = solved(groups, round(least + share * (most - least)))
        assert found.gap == 0 and found == solved(groups, round(least + share * (most - least)))
        losses.append(found.loss)
    assert losses == sorted(losses, reverse=True) and losses[0] > losses[-1]


def test_equal_sensitivities_and_sizes_share_the_budget() -> None:
    """Twelve groups of one kind and bytes for seven steps from 4 bits to 8: any seven, and never one of two steps."""
    groups = [[(16.0, 40), (1.0, 80)] for _ in range(12)]
    found = solved(groups, 12 * 40 + 7 * 40 + 39)
    assert sorted(found.chosen) == [0] * 5 + [1] * 7 and found.gap == 0


def test_a_candidate_that_is_larger_and_no_better_is_never_taken() -> None:
    found = solved([[(1.0, 10), (2.0, 20), (1.0, 30), (0.5, 40)]], 39)
    assert found.chosen == (0,)


def test_a_budget_below_the_least_is_refused() -> None:
    with pytest.raises(ValueError, match="the smallest candidates take 12 bytes, and the budget is 11"):
        solve([[1.0], [1.0, 0.5]], [[5], [7, 9]], 11)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_losses_must_be_numbers(loss: float) -> None:
    with pytest.raises(ValueError, match="candidates of"):
        solve([[1.0, loss]], [[1, 2]], 5)

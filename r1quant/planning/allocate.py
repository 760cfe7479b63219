"""Allocate: one candidate for every group, so that the losses add up to the least within a budget of bytes.

The multiple-choice knapsack problem (H. Kellerer, U. Pferschy, D. Pisinger, Knapsack Problems, 2004, chapter 11). Its
linear relaxation gives a price of a byte and a lower bound; at that price every candidate costs a known amount more
than the cheapest of its group, so that choices that add up to more than the best known answer is above the bound are
left out. The rest is dynamic programming over undominated pairs of bytes and loss: exact if there are no more
pairs than LIMIT, and else within a gap that is proven and stated. It does not know what the groups are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FEW, LIMIT = 256, 1 << 13  # pairs that are kept for a good answer, and to prove that there is no better one

Losses = npt.NDArray[np.float64]
Sizes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Solution:
    """chosen: the index of each group's candidate; bound: no choice within the budget adds up to less loss."""

    chosen: tuple[int, ...]
    loss: float
    nbytes: int
    bound: float

    @property
    def gap(self) -> float:
        """How much better than this anything within the budget may be; 0 if this is the best, but for rounding."""
        return max(0.0, self.loss - self.bound)


@dataclass(frozen=True)
class _Group:
    """Undominated candidates, from the smallest: sizes rise, losses fall. index: their places among all."""

    losses: Losses
    sizes: Sizes
    index: tuple[int, ...]


def solve(
    losses: Sequence[Sequence[float]], sizes: Sequence[Sequence[int]], budget: int, limit: int = LIMIT
) -> Solution:
    """losses, sizes: of each group's candidates, finite; as many of one as of the other, and at least one.

    Raises ValueError if the smallest candidates do not fit the budget together, or a loss is not finite.
    """
    groups = [_undominated(*group) for group in zip(losses, sizes, strict=True)]
    least = sum(int(group.sizes[0]) for group in groups)
    if least > budget:
        raise ValueError(f"the smallest candidates take {least} bytes, and the budget is {budget}")
    price, first = _relaxed(groups, budget)
    best, _ = _search(groups, budget, price, first, FEW)
    best, dropped = _search(groups, budget, price, best, limit)
    pairs = list(zip(groups, best, strict=True))
    loss = math.fsum(float(group.losses[k]) for group, k in pairs)
    nbytes = sum(int(group.sizes[k]) for group, k in pairs)
    return Solution(tuple(group.index[k] for group, k in pairs), loss, nbytes, min(dropped, loss))


def _undominated(losses: Sequence[float], sizes: Sequence[int]) -> _Group:
    if not losses or len(losses) != len(sizes) or not all(map(math.isfinite, losses)):
        raise ValueError(f"losses {list(losses)} of candidates of {list(sizes)} bytes")
    kept: list[int] = []
    for k in sorted(range(len(losses)), key=lambda k: (sizes[k], losses[k])):
        if not kept or losses[k] < losses[kept[-1]]:
            kept.append(k)
    values = np.array([losses[k] for k in kept], np.float64), np.array([sizes[k] for k in kept], np.int64)
    return _Group(*values, tuple(kept))


def _relaxed(groups: Sequence[_Group], budget: int) -> tuple[float, list[int]]:
    """The price of a byte in the linear relaxation, and an answer: steps along each group's lower convex hull are taken
    in the order of what they save a byte, and those that do not fit are left out. The price is that of the first."""
    steps = sorted((-saved, g, k) for g, group in enumerate(groups) for saved, k in _hull(group))
    chosen, left, price = [0] * len(groups), budget - sum(int(group.sizes[0]) for group in groups), 0.0
    for saved, g, k in steps:
        more = int(groups[g].sizes[k] - groups[g].sizes[chosen[g]])
        if more <= left:
            chosen[g], left = k, left - more
        else:
            price = price or -saved
    return price, chosen


def _hull(group: _Group) -> list[tuple[float, int]]:
    """The steps along the lower convex hull: what each saves a byte, falling, and the candidate that it leads to."""
    steps: list[tuple[float, int]] = []
    at = 0
    while at + 1 < len(group.index):
        saved = (group.losses[at] - group.losses[at + 1 :]) / (group.sizes[at + 1 :] - group.sizes[at])
        best = len(saved) - 1 - int(np.argmax(saved[::-1]))
        at += 1 + best
        steps.append((float(saved[best]), at))
    return steps


def _search(
    groups: Sequence[_Group], budget: int, price: float, known: Sequence[int], limit: int
) -> tuple[list[int], float]:
    """The best answer that is found, and a lower bound of those that were not looked at; infinite if all were.

    known: an answer to start from. Keeps at most `limit` partial answers after each group, those of the least bound.
    """
    costs = [group.losses + price * group.sizes for group in groups]  # what a candidate loses, and its bytes are worth
    floor = math.fsum(float(cost.min()) for cost in costs) - price * budget
    upper = math.fsum(float(group.losses[k]) for group, k in zip(groups, known, strict=True))
    order = sorted(range(len(groups)), key=lambda g: (-int(groups[g].sizes[-1] - groups[g].sizes[0]), g))
    rest_least = sum(int(group.sizes[0]) for group in groups)
    rest_most = sum(int(group.sizes[-1]) for group in groups)
    used, excess = np.zeros(1, np.int64), np.zeros(1)  # bytes of partial answers, and how far above the floor they are
    history: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]] = []
    dropped = math.inf
    slack = 1e-12 * max(1.0, abs(upper), abs(floor), price * budget)
    for g in order:
        sizes = groups[g].sizes
        rest_least, rest_most = rest_least - int(sizes[0]), rest_most - int(sizes[-1])
        wide_used = (used[:, None] + sizes).ravel()
        wide_excess = (excess[:, None] + (costs[g] - costs[g].min())).ravel()
        unused = np.maximum(0, budget - wide_used - rest_most)  # whatever comes after
        bounds = floor + wide_excess + price * unused
        kept = np.flatnonzero((wide_used + rest_least <= budget) & (bounds <= upper + slack))
        kept = kept[_front(wide_used[kept], wide_excess[kept] - price * wide_used[kept])]
        if len(kept) > limit:
            ranked = kept[np.argsort(bounds[kept], kind="stable")]
            dropped = min(dropped, float(bounds[ranked[limit]]))
            kept = np.sort(ranked[:limit])
        history.append((kept // len(sizes), kept % len(sizes)))
        used, excess = wide_used[kept], wide_excess[kept]
    totals = floor + excess + price * (budget - used)
    if not len(totals) or totals.min() >= upper:
        return list(known), dropped
    last = int(np.argmin(totals))
    chosen = [0] * len(groups)
    for g, (before, candidate) in zip(reversed(order), reversed(history), strict=True):
        chosen[g], last = int(candidate[last]), int(before[last])
    return chosen, dropped


def _front(used: Sizes, losses: Losses) -> npt.NDArray[np.int64]:
    """The places of the pairs for which none has both less loss, or as much, and fewer bytes, or as many."""
    order = np.lexsort((losses, used))
    lowest = np.minimum.accumulate(losses[order])
    better = np.ones(len(order), bool)
    better[1:] = losses[order][1:] < lowest[:-1]
    return np.sort(order[better])

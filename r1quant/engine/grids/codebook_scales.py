"""The choice of scales for code books of combinations, compiled by numba.

By the squared error of plain rounding, each column's weighted with its importance w. An entry q on scale s costs a
constant and s^2 W - 2 s B, with W = sum of w q^2 and B = sum of w x q, so the entries that are best on some scale are
the corners of a convex hull in the plane of W and B. The corners of several tuples add up, as do their costs. So the
loss of a group is known on every scale at once, exactly, and its best scale is B / W at the corner of largest B^2 / W.

For a super-block, float16 scales around the one that gives its largest group the largest integer are tried, each
group with the integers that are best for it, and fitted by least squares to the corners that were chosen.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from r1quant.engine.grids.block_kernels import half
from r1quant.engine.grids.codebook_kernels import EVEN, NONE
from r1quant.engine.grids.parallel import over_rows

Array = Any  # numba compiles on the arrays' concrete types

F = np.float32
_FAST = {"reassoc", "contract", "nsz", "nnan", "arcp"}

CORNERS = 64  # that are kept of a tuple
AT_ONCE = 8  # rows


@numba.njit(cache=True, fastmath=_FAST)  # type: ignore[untyped-decorator]
def _along(x: Array, w: Array, values: Array, signs: int, odd: bool, along: Array, turn: Array) -> None:
    """B float32 [E] of every entry. odd: with one sign turned, the one that costs least; turn float32 [E], for use."""
    along[:] = F(0)
    turn[:] = F(3e38)
    for j in range(x.size):
        row = values[j]
        f = w[j] * (x[j] if signs == NONE else abs(x[j]))
        for e in range(along.size):
            along[e] += f * row[e]
        if odd:
            for e in range(along.size):
                turn[e] = min(turn[e], f * row[e])
    if odd:
        for e in range(along.size):
            along[e] -= F(2) * turn[e]


@numba.njit(cache=True, fastmath=_FAST)  # type: ignore[untyped-decorator]
def _hull(norms: Array, order: Array, along: Array, corners: Array) -> int:
    """The corners of the hull, W ascending: row 0 of float32 [3, CORNERS] has W, row 1 B, row 2 the scale below which
    a corner is better than the one before it. Gives their number. norms float32 [E], ascending; order int32 [E]."""
    count = 0
    for i in range(order.size):
        b, a = along[order[i]], norms[i]
        if count > 0 and b <= corners[1, count - 1]:
            continue
        scale = F(np.inf)
        while count > 0:
            wider = a - corners[0, count - 1]
            scale = F(2) * (b - corners[1, count - 1]) / wider if wider > 0 else F(np.inf)
            if scale < corners[2, count - 1] and count < CORNERS:
                break
            count -= 1
            scale = F(np.inf)
        corners[0, count], corners[1, count], corners[2, count] = a, b, scale
        count += 1
    return count


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _add(chain: Array, length: int, corners: Array, count: int, merged: Array) -> int:
    """Adds the corners of a tuple to a chain float32 [3, ...]: a corner, then steps in W and B by descending scale. The
    sums of its beginnings are the corners of all tuples together. Gives its new length; merged: for use here."""
    start = length == 0
    merged[:, 0] = corners[:, 0]
    if not start:
        merged[:2, 0] += chain[:2, 0]
    i, j, at = 1, 1, 1
    while i < length or j < count:
        if j >= count or (i < length and chain[2, i] >= corners[2, j]):
            merged[:, at] = chain[:, i]
            i += 1
        else:
            merged[:2, at] = corners[:2, j] - corners[:2, j - 1]
            merged[2, at] = corners[2, j]
            j += 1
        at += 1
    chain[:, :at] = merged[:, :at]
    return at


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def sum_up(chain: Array, length: int) -> Any:
    """Turns steps into corners; gives the scale of the group that costs least, and what it gains."""
    best, gain = F(0), F(0)
    for i in range(length):
        if i > 0:
            chain[0, i] += chain[0, i - 1]
            chain[1, i] += chain[1, i - 1]
        if chain[1, i] > 0 and chain[1, i] * chain[1, i] > gain * chain[0, i]:
            gain = chain[1, i] * chain[1, i] / chain[0, i]
            best = chain[1, i] / chain[0, i]
    return best, gain


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def corner_for(chain: Array, length: int, s: np.float32) -> int:
    """The corner that is best on a scale."""
    low, high = 0, length
    while high - low > 1:
        middle = (low + high) >> 1
        if chain[2, middle] > s:
            low = middle
        else:
            high = middle
    return low


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _assign(chains: Array, lengths: Array, ideal: Array, steps: Array, reach: int, unit: np.float32, ks: Array,
            vs: Array) -> Any:  # fmt: skip
    """The integers and books that are best for the groups on a scale `unit`: what they leave, less what all zeros
    would, and the scale that suits their corners best. Writes ks and vs int64 [groups]."""
    total, along, norm = F(0), 0.0, 0.0
    for g in range(ks.size):
        least, corner = F(np.inf), 0
        ratio = ideal[g] / unit
        middle = int(np.rint((ratio - steps[0]) / (steps[1] - steps[0]))) if ratio > steps[0] else 0
        middle = min(middle, steps.size - 1)
        for k in range(max(0, middle - reach), min(steps.size - 1, middle + reach) + 1):
            s = unit * steps[k]
            for v in range(chains.shape[0]):
                c = corner_for(chains[v, g], lengths[v, g], s)
                loss = s * (s * chains[v, g, 0, c] - F(2) * chains[v, g, 1, c])
                if loss < least:
                    least, corner, ks[g], vs[g] = loss, c, k, v
        total += least
        along += steps[ks[g]] * chains[vs[g], g, 1, corner]
        norm += steps[ks[g]] * steps[ks[g]] * chains[vs[g], g, 0, corner]
    return total, F(along / norm) if norm > 0 else F(0)


@numba.njit(cache=True, fastmath=_FAST)  # type: ignore[untyped-decorator]
def chains_of(
    x: Array, w: Array, values: Array, norms: Array, order: Array, signs: int, chains: Array, lengths: Array,
    along: Array, turn: Array, corners: Array, merged: Array,
) -> None:  # fmt: skip
    """The chains of the groups of a super-block x [256] for every book."""
    width, size = values.shape[1], x.size // lengths.shape[1]
    lengths[:] = 0
    for o in range(0, x.size, 8):
        turned = -1  # the column whose sign is turned
        if signs == EVEN:
            odd, least = False, F(np.inf)
            for j in range(o, o + 8):
                odd ^= x[j] < 0
                if w[j] * abs(x[j]) < least:
                    least = w[j] * abs(x[j])
                    turned = j
            turned = turned if odd else -1
        for a in range(o, o + 8, width):
            t, g = a // width, a // size
            for v in range(values.shape[0]):
                _along(x[a : a + width], w[a : a + width], values[v], signs, a <= turned < a + width, along, turn)
                count = _hull(norms[v, t], order[v, t], along, corners)
                lengths[v, g] = _add(chains[v, g], lengths[v, g], corners, count, merged)


@over_rows()
def choose(
    weight: Array, counted: Array, values: Array, norms: Array, order: Array, signs: int, steps: Array, largest: float,
    trials: Array, rounds: int, d: Array, scales: Array, variant: Array,
) -> None:  # fmt: skip
    """The scales of one super-block of every row.

    weight   float32 [N, 256]; counted float32 [256], above 0
    values   float32 [V, width, E], the entries of V books of which a group uses one
    norms    float32 [V, 256 / width, E]: W of the entries, ascending; order int32, the same: which entries these are
    signs    NONE, FREE or EVEN
    steps    float32: what the integer scales stand for, at even distances
    largest  the largest level, that of the largest weight of each group if the scale follows from the range; 0 if
             scales are chosen by the loss
    trials   float32: float16 scales that are tried, as shares of what gives the largest group the largest integer
    Writes d float32 [N], float16 numbers; scales int8 and variant uint8 [N, groups].
    """
    groups, width, size = scales.shape[1], values.shape[1], values.shape[2]
    for chunk in numba.prange((weight.shape[0] + AT_ONCE - 1) // AT_ONCE):
        chains = np.empty((values.shape[0], groups, 3, 256 // groups // width * CORNERS), np.float32)
        merged, corners = np.empty(chains.shape[2:], np.float32), np.empty((3, CORNERS), np.float32)
        lengths, along, turn = np.zeros((values.shape[0], groups), np.int64), np.empty(size, F), np.empty(size, F)
        ideal, ks, vs = np.empty(groups, np.float32), np.empty(groups, np.int64), np.empty(groups, np.int64)
        for n in range(chunk * AT_ONCE, min((chunk + 1) * AT_ONCE, weight.shape[0])):
            x = weight[n]
            chains_of(x, counted, values, norms, order, signs, chains, lengths, along, turn, corners, merged)
            top = F(0)
            for g in range(groups):
                gained = F(-1)
                for v in range(values.shape[0]):
                    s, gain = sum_up(chains[v, g], lengths[v, g])
                    if gain > gained:
                        ideal[g], gained = s, gain
                if largest > 0:
                    ideal[g] = np.abs(x[g * (256 // groups) : (g + 1) * (256 // groups)]).max() / F(largest)
                top = max(top, ideal[g])
            d[n] = F(0)
            scales[n, :] = 0
            variant[n, :] = 0
            best = F(np.inf)
            for trial in trials:
                unit, last = half(top / steps[steps.size - 1] * trial), F(np.inf)
                for _ in range(rounds):
                    if unit <= 0:
                        break
                    total, fitted = _assign(chains, lengths, ideal, steps, 2 if largest == 0 else 0, unit, ks, vs)
                    if total < best:
                        best, d[n] = total, unit
                        for g in range(groups):
                            scales[n, g], variant[n, g] = ks[g], vs[g]
                    if total >= last:
                        break
                    last, unit = total, half(fitted)

"""The inner loops that choose the scales and minima of block types, compiled by numba.

All that a block stores but its codes is chosen first, in the precision in which it is stored, by the squared error of
plain rounding, each column's weighted with its importance. For every group a float scale and minimum are fitted; the
largest of a super-block give its float16 numbers; integers around the ratios are tried by the error that they leave;
then the float16 numbers are fitted to the codes by least squares, and the integers chosen again.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from r1quant.engine.grids.parallel import over_rows

Array = Any  # numba compiles on the arrays' concrete types

F = np.float32
_FAST = {"reassoc", "contract", "nsz", "arcp"}


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def half(value: float) -> Any:
    """The nearest float16, at most the largest finite one, as float32. numba knows no float16."""
    size = min(abs(value), 65504.0)
    if size < 2.0**-25:
        return F(0)
    power = max(np.floor(np.log2(size)), -14.0)
    step = 2.0 ** (power - 10)
    size = np.rint(size / step) * step
    return F(-size if value < 0 else size)


@numba.njit(cache=True, inline="always")  # type: ignore[untyped-decorator]
def _level(value: np.float32, levels: Array, cells: Array) -> Any:
    """The level nearest to a value. cells: as blocks.cells_of says."""
    if cells.size == 0:
        return min(max(np.rint(value), levels[0]), levels[levels.size - 1])
    cell = int(min(max(value - levels[0], F(0)), F(cells.size - 1)))
    code = cells[cell]
    following = min(code + 1, levels.size - 1)
    return levels[following] if value - levels[code] > levels[following] - value else levels[code]


@numba.njit(cache=True, fastmath=_FAST)  # type: ignore[untyped-decorator]
def _loss(x: Array, w: Array, s: np.float32, m: np.float32, levels: Array, cells: Array) -> Any:
    """The weighted squared error of a group x [g] that is rounded to level * s + m."""
    total = F(0)
    if s == 0:
        for i in range(x.size):
            total += w[i] * (x[i] - m) * (x[i] - m)
        return total
    inverse = F(1) / s
    for i in range(x.size):
        value = (x[i] - m) * inverse
        missed = value - _level(value, levels, cells)
        total += w[i] * missed * missed
    return total * s * s


@numba.njit(cache=True, fastmath=_FAST)  # type: ignore[untyped-decorator]
def _affine(x: Array, w: Array, levels: Array, cells: Array, shrinks: Array, signed: bool) -> Any:
    """Scale >= 0 and offset of a group, the best of many ranges: both ends drawn in, or either, each then fitted by
    least squares. signed: whether the offset may be above 0; otherwise the range holds 0, as that of blocks does."""
    top = levels[levels.size - 1]
    low, high = x[0], x[0]
    for i in range(x.size):
        low, high = min(low, x[i]), max(high, x[i])
    if not signed:
        low, high = min(low, F(0)), max(high, F(0))
    if high == low:
        return F(0), low
    best_s, best_m, least = F(0), F(0), F(np.inf)
    middle = (low + high) / 2 if signed else F(0)
    for c in range(shrinks.size):
        p = shrinks[c]
        for side in range(3):
            bottom = middle + (low - middle) * p if side != 1 else low
            ceiling = middle + (high - middle) * p if side != 2 else high
            s = (ceiling - bottom) / top
            inverse = F(1) / s
            weight, wx, wl, wll, wlx = F(0), F(0), F(0), F(0), F(0)
            for i in range(x.size):
                level = min(max(np.rint((x[i] - bottom) * inverse), F(0)), top)
                weight += w[i]
                wx += w[i] * x[i]
                wl += w[i] * level
                wll += w[i] * level * level
                wlx += w[i] * level * x[i]
            determinant = weight * wll - wl * wl
            if determinant <= 0:
                continue
            s = (weight * wlx - wx * wl) / determinant
            m = (wll * wx - wl * wlx) / determinant
            if m > 0 and not signed:
                m = F(0)
                s = wlx / wll if wll > 0 else F(0)
            if s <= 0:
                continue
            loss = _loss(x, w, s, m, levels, cells)
            if loss < least:
                best_s, best_m, least = s, m, loss
            if p == 1:
                break
    return best_s, best_m


@numba.njit(cache=True, fastmath=_FAST)  # type: ignore[untyped-decorator]
def _centred(x: Array, w: Array, levels: Array, cells: Array, shrinks: Array) -> Any:
    """The scale of a group without offset, of either sign: the largest weight is put at shares of the first level or of
    the last one, then the scale is fitted by least squares."""
    extreme = F(0)
    for i in range(x.size):
        if abs(x[i]) > abs(extreme):
            extreme = x[i]
    if extreme == 0:
        return F(0)
    best, least = F(0), F(np.inf)
    for end in range(2):
        edge = levels[0] if end == 0 else levels[levels.size - 1]
        for c in range(shrinks.size):
            inverse = edge / (shrinks[c] * extreme)
            wll, wlx = F(0), F(0)
            for i in range(x.size):
                level = _level(x[i] * inverse, levels, cells)
                wll += w[i] * level * level
                wlx += w[i] * level * x[i]
            if wll <= 0 or wlx == 0:
                continue
            s = wlx / wll
            loss = _loss(x, w, s, F(0), levels, cells)
            if loss < least:
                best, least = s, loss
    return best


@over_rows()
def scale_alone(
    weight: Array, counted: Array, size: int, levels: Array, cells: Array, shrinks: Array, d: Array
) -> None:
    """Types whose block is a group with a scale. weight float32 [N, K], counted float32 [K]; writes d float32 [N, G],
    float16 numbers."""
    for n in numba.prange(weight.shape[0]):
        for g in range(d.shape[1]):
            a = g * size
            d[n, g] = half(_centred(weight[n, a : a + size], counted[a : a + size], levels, cells, shrinks))


@over_rows()
def scale_and_offset(
    weight: Array, counted: Array, size: int, levels: Array, cells: Array, shrinks: Array, d: Array, dmin: Array
) -> None:
    """Types whose block is a group with a scale and an offset; as scale_alone, and writes dmin float32 [N, G]."""
    for n in numba.prange(weight.shape[0]):
        for g in range(d.shape[1]):
            a = g * size
            x, w = weight[n, a : a + size], counted[a : a + size]
            s, m = _affine(x, w, levels, cells, shrinks, True)
            s = half(s)
            total, missed = F(0), F(0)
            for i in range(size):  # the offset that suits the rounded scale
                level = F(0) if s == 0 else _level((x[i] - m) / s, levels, cells)
                total += w[i]
                missed += w[i] * (x[i] - s * level)
            d[n, g] = s
            dmin[n, g] = half(missed / total if total > 0 else m)


@numba.njit(cache=True, fastmath=_FAST)  # type: ignore[untyped-decorator]
def _offset_for(x: Array, w: Array, s: np.float32, m: np.float32, levels: Array, cells: Array) -> Any:
    """The offset that is best with scale s and the codes that scale s and offset m give."""
    total, missed = F(0), F(0)
    inverse = F(0) if s == 0 else F(1) / s
    for i in range(x.size):
        level = F(0) if s == 0 else _level((x[i] - m) * inverse, levels, cells)
        total += w[i]
        missed += w[i] * (x[i] - s * level)
    return missed / total if total > 0 else m


@over_rows(fastmath=_FAST)
def two_level_affine(
    weight: Array, counted: Array, size: int, levels: Array, cells: Array, most: int, shrinks: Array, reach: int,
    rounds: int, d: Array, dmin: Array, scales: Array, minima: Array,
) -> None:  # fmt: skip
    """Q2_K, Q4_K, Q5_K: scale d * k and offset -dmin * j in each group of `size` columns, k and j from 0 to `most`.

    weight float32 [N, K], counted float32 [K]. Tries integer scales up to `reach` around the ratio, each with the
    minima around the one that suits it, in up to `rounds` rounds. Writes d and dmin float32 [N, S], float16 numbers;
    scales int8 and minima uint8 [N, G].
    """
    groups = 256 // size
    for n in numba.prange(weight.shape[0]):
        ideal_s, ideal_m = np.empty(groups, np.float32), np.empty(groups, np.float32)
        ks, js = np.empty(groups, np.int64), np.empty(groups, np.int64)
        for b in range(d.shape[1]):
            largest_s, largest_m = F(0), F(0)
            for g in range(groups):
                a = b * 256 + g * size
                s, m = _affine(weight[n, a : a + size], counted[a : a + size], levels, cells, shrinks, False)
                ideal_s[g], ideal_m[g] = s, m
                largest_s, largest_m = max(largest_s, s), max(largest_m, -m)
            unit, lift = half(largest_s / most), half(largest_m / most)
            best, d[n, b], dmin[n, b] = F(np.inf), unit, lift
            for _ in range(rounds):
                total, kk, kj, jj, xk, xj = F(0), 0.0, 0.0, 0.0, 0.0, 0.0
                for g in range(groups):
                    a = b * 256 + g * size
                    x, w = weight[n, a : a + size], counted[a : a + size]
                    middle = int(np.rint(ideal_s[g] / unit)) if unit > 0 else 0
                    middle = min(middle, most)
                    least = F(np.inf)
                    ks[g], js[g] = 0, 0
                    for k in range(max(0, middle - reach), min(most, middle + reach) + 1):
                        s = unit * F(k)
                        suited = _offset_for(x, w, s, ideal_m[g], levels, cells)
                        centre = int(np.rint(-suited / lift)) if lift > 0 else 0
                        centre = min(max(centre, 0), most)
                        for j in range(max(0, centre - 1), min(most, centre + 1) + 1):
                            loss = _loss(x, w, s, -lift * F(j), levels, cells)
                            if loss < least:
                                least = loss
                                ks[g], js[g] = k, j
                    total += least
                    s, m = unit * F(ks[g]), -lift * F(js[g])
                    inverse = F(0) if s == 0 else F(1) / s
                    for i in range(size):
                        level = F(0) if s == 0 else _level((x[i] - m) * inverse, levels, cells)
                        u, v = ks[g] * level, -F(js[g])
                        kk += w[i] * u * u
                        kj += w[i] * u * v
                        jj += w[i] * v * v
                        xk += w[i] * x[i] * u
                        xj += w[i] * x[i] * v
                if total >= best:
                    break
                best, d[n, b], dmin[n, b] = total, unit, lift
                for g in range(groups):
                    scales[n, b * groups + g] = ks[g]
                    minima[n, b * groups + g] = js[g]
                determinant = kk * jj - kj * kj
                if determinant > 1e-9 * kk * jj and jj > 0:
                    unit = half((xk * jj - xj * kj) / determinant)
                    lift = half((xj * kk - xk * kj) / determinant)
                elif kk > 0:
                    unit = half(xk / kk)
                if unit <= 0 or lift < 0:
                    break


@over_rows(fastmath=_FAST)
def two_level_centred(
    weight: Array, counted: Array, size: int, levels: Array, cells: Array, low: int, high: int, shrinks: Array,
    reach: int, rounds: int, d: Array, scales: Array,
) -> None:  # fmt: skip
    """Q3_K, Q6_K, IQ4_XS: scale d * k in each group of `size` columns, k from `low` to `high`, of either sign.

    Arrays as in two_level_affine. The largest scale of a super-block is put at either end of the integers.
    """
    groups = 256 // size
    for n in numba.prange(weight.shape[0]):
        ideal, ks = np.empty(groups, np.float32), np.empty(groups, np.int64)
        for b in range(d.shape[1]):
            extreme = F(0)
            for g in range(groups):
                a = b * 256 + g * size
                ideal[g] = _centred(weight[n, a : a + size], counted[a : a + size], levels, cells, shrinks)
                scales[n, b * groups + g] = 0
                if abs(ideal[g]) > abs(extreme):
                    extreme = ideal[g]
            d[n, b] = F(0)
            best = F(np.inf)
            for end in range(2 if extreme != 0 else 0):
                unit, last = half(extreme / (low if end == 0 else high)), F(np.inf)
                for _ in range(rounds):
                    if unit == 0:
                        break
                    total, kk, xk = F(0), 0.0, 0.0
                    for g in range(groups):
                        a = b * 256 + g * size
                        x, w = weight[n, a : a + size], counted[a : a + size]
                        middle, least = int(np.rint(ideal[g] / unit)), F(np.inf)
                        ks[g] = 0
                        for sign in range(2):  # a scale of the other sign uses the longer end of the levels
                            at = middle if sign == 0 else -middle
                            for k in range(max(low, at - reach), min(high, at + reach) + 1):
                                loss = _loss(x, w, unit * F(k), F(0), levels, cells)
                                if loss < least:
                                    least = loss
                                    ks[g] = k
                        total += least
                        s = unit * F(ks[g])
                        if s != 0:
                            inverse = F(1) / s
                            for i in range(size):
                                u = ks[g] * _level(x[i] * inverse, levels, cells)
                                kk += w[i] * u * u
                                xk += w[i] * x[i] * u
                    if total < best:
                        best = total
                        d[n, b] = unit
                        for g in range(groups):
                            scales[n, b * groups + g] = ks[g]
                    if total >= last or kk <= 0:
                        break
                    last, unit = total, half(xk / kk)

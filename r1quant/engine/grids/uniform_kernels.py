"""The inner loops of the uniform grid, compiled by numba. Rows are independent and run in parallel.

Each returns the same bits whatever the number of threads: no sum crosses a row.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from r1quant.engine.grids.parallel import over_rows

Array = Any  # numba compiles on the arrays' concrete types

# Reassociation lets sums use vector registers; NaN and signed zeros keep their meaning.
_FAST = {"reassoc", "contract", "nsz", "arcp"}


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _rounded(value: np.float32, drop: int, low: np.float32, high: np.float32, cell: Array) -> Any:
    """As grid.round_scale: half to even on the bits of the float, magnitude clamped. cell: float32 [1], scratch."""
    cell[0] = min(max(abs(value), low), high)
    words = cell.view(np.uint32)
    word = np.uint64(words[0])
    words[0] = np.uint32(((word + np.uint64((1 << (drop - 1)) - 1) + ((word >> drop) & 1)) >> drop) << drop)
    return -cell[0] if value < 0 else cell[0]


@numba.njit(cache=True, fastmath=_FAST)  # type: ignore[untyped-decorator]
def _error(w: Array, importance: Array, scale: np.float32, zero: np.float32, top: np.float32) -> np.float32:
    """Weighted squared error of rounding one group to a scale and zero point."""
    inverse = np.float32(1.0) / scale
    total = np.float32(0.0)
    for i in range(w.size):
        exact = w[i] * inverse
        code = min(max(np.rint(exact) + zero, np.float32(0.0)), top) - zero
        total += importance[i] * (exact - code) * (exact - code)
    return total * scale * scale


@over_rows(fastmath=_FAST)
def search_symmetric(
    w: Array, importance: Array, size: int, bits: int, shrinks: Array, full: Array, drop: int,
    low: np.float32, high: np.float32, scale: Array,
) -> None:  # fmt: skip
    """The scale of least weighted error for every group, the zero point being 2**(bits-1).

    w float32 [N, K]; importance float32 [K]; candidates: p * 2 absmax / (2**bits - 1) for p in shrinks, and
    -p * extreme / 2**(bits-1) for p in full, which spends the extra negative code on the largest weight.
    scale float32 [N, K / size] is written.
    """
    rows, columns = w.shape
    middle = np.float32(1 << (bits - 1))
    top = np.float32((1 << bits) - 1)
    for n in numba.prange(rows):
        cell = np.empty(1, np.float32)
        for g in range(columns // size):
            part = w[n, g * size : (g + 1) * size]
            weight = importance[g * size : (g + 1) * size]
            extreme = np.float32(0.0)
            for i in range(size):
                if abs(part[i]) > abs(extreme):
                    extreme = part[i]
            best, least = np.float32(0.0), np.float32(np.inf)
            for c in range(shrinks.size + full.size):
                if c < shrinks.size:
                    raw = shrinks[c] * np.float32(2.0) * abs(extreme) / top
                else:
                    raw = -full[c - shrinks.size] * extreme / middle
                candidate = _rounded(raw, drop, low, high, cell)
                error = _error(part, weight, candidate, middle, top)
                if error < least:
                    best, least = candidate, error
            scale[n, g] = best


@over_rows(fastmath=_FAST)
def search_asymmetric(
    w: Array, importance: Array, size: int, bits: int, zero_min: int, shrinks: Array, reach: int,
    drop: int, low: np.float32, high: np.float32, scale: Array, zero: Array,
) -> None:  # fmt: skip
    """The scale and integer zero point of least weighted error for every group.

    Candidates: the range max - min (with 0 inside) shrunk by p, and zero points within `reach` of -min / scale.
    scale float32 [N, G] and zero uint8 [N, G] are written.
    """
    rows, columns = w.shape
    top = np.float32((1 << bits) - 1)
    for n in numba.prange(rows):
        cell = np.empty(1, np.float32)
        for g in range(columns // size):
            part = w[n, g * size : (g + 1) * size]
            weight = importance[g * size : (g + 1) * size]
            lowest, highest = np.float32(0.0), np.float32(0.0)
            for i in range(size):
                lowest, highest = min(lowest, part[i]), max(highest, part[i])
            best, best_zero, least = np.float32(0.0), np.float32(0.0), np.float32(np.inf)
            for c in range(shrinks.size):
                candidate = _rounded(shrinks[c] * (highest - lowest) / top, drop, low, high, cell)
                centre = np.rint(-shrinks[c] * lowest / candidate)
                for step in range(-reach, reach + 1):
                    point = min(max(centre + np.float32(step), np.float32(zero_min)), top)
                    error = _error(part, weight, candidate, point, top)
                    if error < least:
                        best, best_zero, least = candidate, point, error
            scale[n, g] = best
            zero[n, g] = np.uint8(best_zero)


@over_rows()
def round_nearest(w: Array, scale: Array, zero: Array, group: Array, top: int, codes: Array) -> None:
    """codes[n, k] = clamp(round(w / scale) + zero), half to even. Writes uint8 [N, K]."""
    rows, columns = w.shape
    limit = np.float32(top)
    for n in numba.prange(rows):
        for k in range(columns):
            g = group[k]
            code = np.rint(w[n, k] / scale[n, g]) + np.float32(zero[n, g])
            codes[n, k] = np.uint8(min(max(code, np.float32(0.0)), limit))


@over_rows(fastmath=_FAST)
def round_block(
    target: Array, w: Array, factor: Array, scale: Array, zero: Array, group: Array, top: int, codes: Array,
    error: Array,
) -> None:  # fmt: skip
    """Rounds one block of columns from the last to the first, each corrected for the errors of those before it.

    target  float32 [N, B], the weights with the feedback of later blocks added; overwritten
    w       float32 [N, B], the weights themselves
    factor  float32 [B, B], unit lower triangular L of the block's H = L D L^T
    scale, zero, group   of the columns: scale float32 [N, G], zero uint8 [N, G], group int32 [B]
    codes   uint8 [N, B] and error float32 [N, B] (w - rounded) are written
    """
    rows, width = w.shape
    limit = np.float32(top)
    for n in numba.prange(rows):
        line = target[n]
        for i in range(width - 1, -1, -1):
            s, z = scale[n, group[i]], np.float32(zero[n, group[i]])
            code = min(max(np.rint(line[i] / s) + z, np.float32(0.0)), limit)
            rounded = (code - z) * s
            codes[n, i] = np.uint8(code)
            missed = w[n, i] - rounded
            error[n, i] = missed
            row = factor[i]
            for j in range(i):
                line[j] += missed * row[j]


@over_rows(fastmath=_FAST)
def round_block_coupled(
    line: Array, w: Array, factor: Array, rows: Array, row_factor: Array, starts: Array, scale: Array, zero: Array,
    group: Array, top: int, codes: Array, error: Array,
) -> None:  # fmt: skip
    """As round_block, where each weight is corrected for the errors of the rows below it in its column too.

    line        float32 [N, B]: as target there; overwritten
    rows        the edges of the runs of rows that are coupled, int64 [R + 1]
    row_factor  float32, flat: of each run of n rows the unit lower triangular [n, n] of its H_O = L D L^T
    starts      int64 [R], where each of them begins
    """
    width = w.shape[1]
    limit = np.float32(top)
    for r in numba.prange(rows.size - 1):
        first, n = rows[r], rows[r + 1] - rows[r]
        lower = row_factor[starts[r] : starts[r] + n * n].reshape(n, n)
        for i in range(width - 1, -1, -1):
            carried = np.zeros(n, np.float32)
            step = factor[i]
            for a in range(n - 1, -1, -1):
                k = first + a
                s, z = scale[k, group[i]], np.float32(zero[k, group[i]])
                code = min(max(np.rint((line[k, i] + carried[a]) / s) + z, np.float32(0.0)), limit)
                rounded = (code - z) * s
                codes[k, i] = np.uint8(code)
                residual = line[k, i] - rounded
                below = lower[a]
                for b in range(a):
                    carried[b] += residual * below[b]
                missed = w[k, i] - rounded
                error[k, i] = missed
                for j in range(i):
                    line[k, j] += missed * step[j]

"""The inner loops of grids that are code books of numbers, compiled by numba.

A weight is level * scale + offset; levels ascend. The kernels of the uniform grid are these with levels 0, 1, 2, ...,
and faster.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from r1quant.engine.grids.parallel import over_rows

Array = Any  # numba compiles on the arrays' concrete types

_FAST = {"reassoc", "nsz", "arcp"}  # no contraction: a value is rounded after the product, as dequantize does


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _code(value: np.float32, levels: Array, even: bool) -> int:
    """The place of the level nearest to a value; of two that are as near, the lower one."""
    low, high = 0, levels.size - 1
    if even:
        return int(min(max(np.ceil(value - levels[0] - np.float32(0.5)), np.float32(0)), np.float32(high)))
    while high - low > 1:
        middle = (low + high) >> 1
        if value >= levels[middle]:
            low = middle
        else:
            high = middle
    return low if value - levels[low] <= levels[high] - value else high


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _nearest(value: np.float32, scale: np.float32, offset: np.float32, levels: Array, even: bool) -> int:
    """The code of a value. In a group without scale all codes stand for the offset, and it is 0."""
    return 0 if scale == 0 else _code((value - offset) / scale, levels, even)


@over_rows()
def round_nearest(w: Array, levels: Array, even: bool, scale: Array, offset: Array, group: Array, codes: Array) -> None:
    """w float32 [N, K]; levels float32 [L]; even, whether they are neighbouring integers; scale, offset float32 [N, G];
    group int32 [K]. Writes uint8 [N, K]."""
    rows, columns = w.shape
    for n in numba.prange(rows):
        for k in range(columns):
            g = group[k]
            codes[n, k] = np.uint8(_nearest(w[n, k], scale[n, g], offset[n, g], levels, even))


@over_rows(fastmath=_FAST)
def round_block(
    target: Array, w: Array, factor: Array, levels: Array, even: bool, scale: Array, offset: Array, group: Array,
    codes: Array, error: Array,
) -> None:  # fmt: skip
    """Rounds one block of columns from the last to the first, each corrected for the errors of those before it.

    Arrays as in uniform_kernels.round_block, but for the grid: levels float32 [L]; even, whether they are
    neighbouring integers; scale, offset float32 [N, G].
    """
    rows, width = w.shape
    for n in numba.prange(rows):
        line = target[n]
        for i in range(width - 1, -1, -1):
            s, m = scale[n, group[i]], offset[n, group[i]]
            code = _nearest(line[i], s, m, levels, even)
            codes[n, i] = np.uint8(code)
            missed = w[n, i] - (levels[code] * s + m)
            error[n, i] = missed
            row = factor[i]
            for j in range(i):
                line[j] += missed * row[j]


@over_rows(fastmath=_FAST)
def round_block_coupled(
    line: Array, w: Array, factor: Array, rows: Array, row_factor: Array, starts: Array, levels: Array, even: bool,
    scale: Array, offset: Array, group: Array, codes: Array, error: Array,
) -> None:  # fmt: skip
    """As round_block, where each weight is corrected for the errors of the rows below it in its column too.

    Arrays as in uniform_kernels.round_block_coupled, but for the grid.
    """
    width = w.shape[1]
    for r in numba.prange(rows.size - 1):
        first, n = rows[r], rows[r + 1] - rows[r]
        lower = row_factor[starts[r] : starts[r] + n * n].reshape(n, n)
        for i in range(width - 1, -1, -1):
            carried = np.zeros(n, np.float32)
            step = factor[i]
            for a in range(n - 1, -1, -1):
                k = first + a
                s, m = scale[k, group[i]], offset[k, group[i]]
                code = _nearest(line[k, i] + carried[a], s, m, levels, even)
                codes[k, i] = np.uint8(code)
                rounded = levels[code] * s + m
                residual = line[k, i] - rounded
                below = lower[a]
                for b in range(a):
                    carried[b] += residual * below[b]
                missed = w[k, i] - rounded
                error[k, i] = missed
                for j in range(i):
                    line[k, j] += missed * step[j]

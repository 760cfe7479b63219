"""The inner loops that round eight neighbouring columns at once to a code book, compiled by numba.

With H = L D L^T, what eight columns add to the loss is sum over j of D_j r_j^2, r = c - L^T q, where c holds their
weights with all feedback and L, D are the part of the factor that belongs to them. Every entry of a book is tried in
this metric. Signs are first those of the unrounded optimum L^-T c; if an even number of them must be negative, every
one that may be worth turning is turned. At last it is asked whether other signs would suit the entry that was found
better. Books whose entries cover four columns are searched twice, the second time with the feedback of the first.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from r1quant.engine.grids.parallel import over_rows

Array = Any  # numba compiles on the arrays' concrete types

F = np.float32
_SEARCH = {"reassoc", "contract", "nsz", "nnan", "arcp"}
_EXACT = {"reassoc", "nsz", "arcp"}  # no contraction: a value is rounded after the product, as dequantize does

NONE, FREE, EVEN = 0, 1, 2  # what a book says of signs
TURNS = 3  # how often signs are turned to suit an entry
LARGE = F(3e38)

C, Z, SIGN, Q, TRY_SIGN, TRY_Q, LEFT, REST = range(8)  # the rows of `work`, float32 [8, 8]


@numba.njit(cache=True, fastmath=_SEARCH)  # type: ignore[untyped-decorator]
def _first_least(cost: Array) -> Any:
    """The place of the least of many numbers, of equal ones the first."""
    least = cost[0]
    for e in range(cost.size):
        least = min(least, cost[e])
    for e in range(cost.size):
        if cost[e] == least:
            return e
    return 0


@numba.njit(cache=True, fastmath=_SEARCH)  # type: ignore[untyped-decorator]
def _entry(aim: Array, unit: Array, pivots: Array, sign: Array, values: Array, bottom: int, missed: Array,
           cost: Array) -> Any:  # fmt: skip
    """The entry that costs least for the columns from `bottom` on, given their signs; and leaves `cost` of each.

    aim     float32 [8], c with what later columns took
    values  float32 [width, E], the entries
    missed  float32 [E], for use here
    """
    top = bottom + values.shape[0]
    cost[:] = F(0)
    for j in range(top - 1, bottom - 1, -1):
        missed[:] = aim[j]
        for m in range(j, top):
            f, row = unit[m, j] * sign[m], values[m - bottom]
            for e in range(cost.size):
                missed[e] -= f * row[e]
        p = pivots[j]
        for e in range(cost.size):
            cost[e] += p * missed[e] * missed[e]
    return _first_least(cost)


@numba.njit(cache=True, fastmath=_SEARCH)  # type: ignore[untyped-decorator]
def _tuples(work: Array, unit: Array, pivots: Array, values: Array, entries: Array, missed: Array, cost: Array) -> Any:
    """The best entries for the signs TRY_SIGN, one after the other: writes TRY_Q and their numbers, gives the cost."""
    sign, q, rest = work[TRY_SIGN], work[TRY_Q], work[REST]
    width, total = values.shape[0], F(0)
    for j in range(8):
        rest[j] = work[C, j]
    for bottom in range(8 - width, -1, -width):
        e = _entry(rest, unit, pivots, sign, values, bottom, missed, cost)
        entries[bottom // width] = e
        total += cost[e]
        for m in range(bottom, bottom + width):
            q[m] = sign[m] * values[m - bottom, e]
            for j in range(bottom):
                rest[j] -= unit[m, j] * q[m]
    return total


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _keep(work: Array, entries: Array) -> None:
    """What was tried is the best so far. entries int64 [2, 2]: kept, tried."""
    work[SIGN, :] = work[TRY_SIGN]
    work[Q, :] = work[TRY_Q]
    entries[0, :] = entries[1]


@numba.njit(cache=True, fastmath=_SEARCH)  # type: ignore[untyped-decorator]
def _turned(work: Array, unit: Array, pivots: Array, even: bool) -> Any:
    """The sign, or the two signs, whose turning helps the entries that are kept most; and what then is left."""
    q, left = work[Q], work[LEFT]
    for j in range(8):
        left[j] = work[C, j]
        for m in range(j, 8):
            left[j] -= unit[m, j] * q[m]
    least, first, second = LARGE, 0, 0
    for a in range(8):
        for b in range(a + 1 if even else a, 8 if even else a + 1):
            cost = F(0)
            for j in range(b + 1):
                moved = left[j] + F(2) * q[b] * unit[b, j]
                if even and j <= a:
                    moved += F(2) * q[a] * unit[a, j]
                cost += pivots[j] * moved * moved
            for j in range(b + 1, 8):
                cost += pivots[j] * left[j] * left[j]
            if cost < least:
                least, first, second = cost, a, b
    return least, first, second


@numba.njit(cache=True, fastmath=_SEARCH)  # type: ignore[untyped-decorator]
def _signed(work: Array, unit: Array, pivots: Array, firm: Array, values: Array, smallest: np.float32, even: bool,
            entries: Array, missed: Array, cost: Array) -> None:  # fmt: skip
    """Rounds C [8] to a book of magnitudes: leaves SIGN, Q and the numbers of the entries in entries[0].

    firm      float32 [8]: 1 / (H^-1)_jj of these columns, what a miss in column j costs at least
    smallest  the smallest magnitude
    """
    z, sign = work[Z], work[TRY_SIGN]
    odd = False
    for j in range(7, -1, -1):
        z[j] = work[C, j]
        for m in range(j + 1, 8):
            z[j] -= unit[m, j] * z[m]
        sign[j] = F(-1) if z[j] < 0 else F(1)
        odd ^= z[j] < 0
    least = LARGE
    if even and odd:
        tried = 0
        for _ in range(8):
            lowest, at = LARGE, 0
            for j in range(8):
                bound = firm[j] * (abs(z[j]) + smallest) * (abs(z[j]) + smallest)
                if not (tried >> j) & 1 and bound < lowest:
                    lowest, at = bound, j
            if lowest >= least:
                break
            tried |= 1 << at
            sign[at] = -sign[at]
            total = _tuples(work, unit, pivots, values, entries[1], missed, cost)
            if total < least:
                least = total
                _keep(work, entries)
            sign[at] = -sign[at]
    else:
        least = _tuples(work, unit, pivots, values, entries[1], missed, cost)
        _keep(work, entries)
    for _ in range(TURNS):
        turned, a, b = _turned(work, unit, pivots, even)
        if turned >= least * F(0.99999):
            break
        work[SIGN, a], work[Q, a] = -work[SIGN, a], -work[Q, a]
        if even:
            work[SIGN, b], work[Q, b] = -work[SIGN, b], -work[Q, b]
        sign[:] = work[SIGN]
        least = turned
        total = _tuples(work, unit, pivots, values, entries[1], missed, cost)
        if total < least:
            least = total
            _keep(work, entries)


@numba.njit(cache=True, fastmath=_SEARCH)  # type: ignore[untyped-decorator]
def _unsigned(work: Array, unit: Array, pivots: Array, values: Array, norms: Array, cost: Array) -> Any:
    """The entry nearest to C [8] of a book without signs. norms float32 [E]: q^T H q of each entry q."""
    weighted, along = work[Z], work[REST]
    for j in range(8):
        weighted[j] = pivots[j] * work[C, j]
    for m in range(8):
        along[m] = F(0)
        for j in range(m + 1):
            along[m] -= F(2) * unit[m, j] * weighted[j]
    cost[:] = norms
    for m in range(8):
        f, row = along[m], values[m]
        for e in range(cost.size):
            cost[e] += f * row[e]
    e = _first_least(cost)
    for m in range(8):
        work[SIGN, m] = F(1)
        work[Q, m] = values[m, e]
    return e


@numba.njit(cache=True, fastmath=_SEARCH)  # type: ignore[untyped-decorator]
def _octet_metrics(factor: Array, pivots: Array, unit: Array, firm: Array) -> None:
    """Of every octet of a block, L float32 [B / 8, 8, 8] and `firm` [B / 8, 8] as in _signed."""
    inverse = np.empty((8, 8), np.float32)
    for o in range(unit.shape[0]):
        for a in range(8):
            for b in range(8):
                unit[o, a, b] = factor[8 * o + a, 8 * o + b] if b < a else F(a == b)
        for j in range(8):  # column j of L^-1
            total = F(0)
            for a in range(8):
                v = F(a == j)
                for b in range(a):
                    v -= unit[o, a, b] * inverse[b, j]
                inverse[a, j] = v
                total += v * v / pivots[8 * o + a]
            firm[o, j] = F(1) / total


@numba.njit(cache=True, fastmath=_SEARCH)  # type: ignore[untyped-decorator]
def _norms_of(unit: Array, pivots: Array, values: Array, norms: Array) -> None:
    """q^T H q of every entry q of books without signs, values float32 [V, 8, E], into norms float32 [V, E]."""
    for v in range(norms.shape[0]):
        for e in range(norms.shape[1]):
            total = F(0)
            for j in range(8):
                along = F(0)
                for m in range(j, 8):
                    along += unit[m, j] * values[v, m, e]
                total += pivots[j] * along * along
            norms[v, e] = total


@numba.njit(cache=True, fastmath=_EXACT)  # type: ignore[untyped-decorator]
def _write(work: Array, entries: Array, coded: Array, top: int, s: np.float32, w: Array, codes: Array,
           error: Array) -> None:  # fmt: skip
    """The codes and errors [8] of eight columns, weights w [8]."""
    width = coded.shape[1]
    for j in range(8):
        code = coded[entries[j // width], j % width]
        codes[j] = top - code if work[SIGN, j] < 0 else code
        error[j] = w[j] - work[Q, j] * s


@numba.njit(cache=True, fastmath=_SEARCH)  # type: ignore[untyped-decorator]
def _feed(error: Array, step: Array, line: Array) -> None:
    """Adds the feedback of eight errors, rows `step` of the factor, to the columns before them, line [B]."""
    for j in range(8):
        wrong, row = error[j], step[j]
        for m in range(line.size):
            line[m] += wrong * row[m]


@numba.njit(cache=True, fastmath=_SEARCH)  # type: ignore[untyped-decorator]
def _feed_rows(aim: Array, error: Array, unit: Array, below: Array, carried: Array) -> None:
    """Adds what eight columns of a row leave to what the rows before it carry, float32 [8, a]. aim [8]: what they were
    to be without their own feedback, less their weights; below [a]: the row of the factor of H_O."""
    for j in range(8):
        residual = aim[j]
        for m in range(j, 8):
            residual += error[m] * unit[m, j]
        row = carried[j]
        for b in range(below.size):
            row[b] += residual * below[b]


@over_rows(fastmath=_EXACT)
def round_block(
    line: Array, w: Array, factor: Array, pivots: Array, rows: Array, row_factor: Array, starts: Array, scale: Array,
    variant: Array, group: Array, values: Array, coded: Array, top: int, signs: int, codes: Array, error: Array,
) -> None:  # fmt: skip
    """Rounds one block of columns from the last eight to the first, rows that are coupled for each other as well.

    Arrays as in level_kernels.round_block_coupled, but for
    pivots   float32 [B], D of the block's H = L D L^T
    scale    float32 [N, G]; variant uint8 [N, G], which of the books a group uses; group int [B / 8], of eight columns
    values   float32 [V, width, E], the entries of V books; coded uint8 [V, E, width], their codes
    top      the largest code; a negative weight of a book of magnitudes has the code `top` - code
    signs    NONE, FREE or EVEN
    """
    octets, size = w.shape[1] // 8, values.shape[2]
    unit, firm = np.empty((octets, 8, 8), np.float32), np.empty((octets, 8), np.float32)
    _octet_metrics(factor, pivots, unit, firm)
    norms = np.empty((octets if signs == NONE else 0, values.shape[0], size), np.float32)
    for o in range(norms.shape[0]):
        _norms_of(unit[o], pivots[8 * o : 8 * o + 8], values, norms[o])
    smallest = values.min()
    for r in numba.prange(rows.size - 1):
        first, n = rows[r], rows[r + 1] - rows[r]
        lower = row_factor[starts[r] : starts[r] + n * n].reshape(n, n)
        work, entries, aim = np.zeros((8, 8), np.float32), np.zeros((2, 2), np.int64), np.empty(8, np.float32)
        missed, cost, carried = np.empty(size, np.float32), np.empty(size, np.float32), np.empty((8, n), np.float32)
        for o in range(octets - 1, -1, -1):
            i, u, p = 8 * o, unit[o], pivots[8 * o : 8 * o + 8]
            carried[:] = F(0)
            for k in range(first + n - 1, first - 1, -1):
                s, v, a, x = scale[k, group[o]], variant[k, group[o]], k - first, w[k, i : i + 8]
                for j in range(8):
                    aim[j] = line[k, i + j] - x[j]
                    whole = aim[j] + carried[j, a]
                    for m in range(j, 8):
                        whole += x[m] * u[m, j]
                    work[C, j] = F(0) if s == 0 else whole / s
                if s == 0:
                    work[Q, :], work[SIGN, :], entries[0, :] = F(0), F(1), 0
                elif signs == NONE:
                    entries[0, 0] = _unsigned(work, u, p, values[v], norms[o, v], cost)
                else:
                    _signed(work, u, p, firm[o], values[v], smallest, signs == EVEN, entries, missed, cost)
                _write(work, entries[0], coded[v], top, s, x, codes[k, i : i + 8], error[k, i : i + 8])
                _feed(error[k, i : i + 8], factor[i : i + 8], line[k, :i])
                _feed_rows(aim, error[k, i : i + 8], u, lower[a, :a], carried)

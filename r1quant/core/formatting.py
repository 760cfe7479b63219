"""Sizes and durations as people read them, the same in the terminal, in reports, on cards and in errors.

It does not know what was measured, nor what stands for a missing number.
"""

from __future__ import annotations

BYTES = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0


def bytes_text(count: float) -> str:
    """A number of bytes with three significant digits, in units of a thousand as on the labels of disks: "4.83 GB"."""
    for unit, size in BYTES:
        if abs(count) >= size:
            return f"{count / size:.3g} {unit}" if abs(count) < 999.5 * size else f"{count / size:,.0f} {unit}"
    return f"{count:.0f} B"


def seconds_text(value: float, digits: int = 3) -> str:
    """A duration with so many significant digits; in milliseconds below a second, in minutes, hours or days from two
    of them on.

    digits  2 suits a prediction, 3 a measurement
    """
    if value < 1:
        return f"{_significant(1000 * value, digits)} ms"
    for unit, size in (("days", DAY), ("hours", HOUR), ("minutes", MINUTE)):
        if value >= 2 * size:
            return f"{_significant(value / size, digits)} {unit}"
    return f"{_significant(value, digits)} s"


def tokens_text(count: int) -> str:
    """A number of tokens: multiples of 1,024 as context lengths are called ("32K"), others in thousands, rounded down
    to a tenth ("6.3K")."""
    if count < 1000:
        return str(count)
    return f"{count // 1024}K" if count % 1024 == 0 else f"{count // 100 / 10:g}K"


def _significant(value: float, digits: int) -> str:
    return f"{float(f'{value:.{digits}g}'):,.10g}"

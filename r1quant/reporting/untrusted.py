"""Records are untrusted input: whatever they hold, a number is asked for and a number or None is had.

It does not know what the records are about.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

LONGEST = 400  # characters of any text out of a record
MOST = 100_000  # entries of any list out of a record


def at(record: Any, path: str) -> Any:
    """What lies at a dotted path; None where there is nothing."""
    for key in path.split("."):
        if not isinstance(record, Mapping):
            return None
        record = record.get(key)
    return record


def number(record: Any, path: str) -> float | None:
    """A finite number; None for anything else."""
    return finite(at(record, path))


def count(record: Any, path: str) -> int | None:
    """A whole number of at least 0; None for anything else."""
    found = number(record, path)
    return int(found) if found is not None and found >= 0 and found == int(found) else None


def text(record: Any, path: str) -> str | None:
    """One line without control characters, at most `LONGEST` long; None for anything else."""
    found = at(record, path)
    return plain(found) if isinstance(found, str) else None


def mapping(record: Any, path: str) -> Mapping[str, Any]:
    """Empty where there is none."""
    found = at(record, path)
    return {plain(str(key)): value for key, value in found.items()} if isinstance(found, Mapping) else {}


def rows(record: Any, path: str) -> list[Mapping[str, Any]]:
    """The mappings in a list; empty where there is none."""
    found = at(record, path)
    return [row for row in found[:MOST] if isinstance(row, Mapping)] if isinstance(found, list) else []


def numbers(record: Any, path: str) -> list[float]:
    """The finite numbers in a list; empty where there is none."""
    found = at(record, path)
    known = map(finite, found[:MOST]) if isinstance(found, list | tuple) else []
    return [value for value in known if value is not None]


def bounds(record: Any, path: str) -> list[float] | None:
    """An interval [low, high]; None for anything else."""
    found = numbers(record, path)
    return found if len(found) == 2 and found[0] <= found[1] else None


def plain(value: str) -> str:
    """Printable characters of a text on one line, those that reverse the order of others left out."""
    line = " ".join(value[: 4 * LONGEST].split())
    line = "".join(c for c in line if c.isprintable())
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"


def short(path: str) -> str:
    """The last part of a path, whatever system it is from; a Hub id stays whole."""
    stated = plain(path).replace("\\", "/").rstrip("/")
    local = stated.startswith(("/", ".", "~")) or stated.count("/") != 1
    return stated.rpartition("/")[2] if local else stated


def finite(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        known = float(value)
    except OverflowError:
        return None
    return known if math.isfinite(known) else None

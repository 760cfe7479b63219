"""Gates: conditions on a record that decide whether a result is good enough, such as `kl.mean<0.05`."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from r1quant.errors import RecipeError

COMPARISONS: Mapping[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
FORM = re.compile(r"\s*([a-z][\w.]*)\s*(<=|>=|<|>)\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*")


@dataclass(frozen=True)
class Gate:
    """key: the path of a number in the record, its parts joined by dots; it must compare so with `bound`."""

    key: str
    comparison: str
    bound: float

    def __str__(self) -> str:
        return f"{self.key}{self.comparison}{self.bound:g}"


def parse(text: str) -> Gate:
    """Raises RecipeError where the text is not KEY, a comparison and a number."""
    found = FORM.fullmatch(text)
    try:
        bound = float(found[3]) if found else math.nan
    except ValueError:
        bound = math.nan
    if found is None or not math.isfinite(bound):
        raise RecipeError(f"{text!r} is not a gate", "write a key, < or >, and a number: kl.mean<0.05")
    return Gate(found[1], found[2], bound)


def judge(gates: Iterable[Gate], record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What each gate says of a record: {"gate", "value", "passed"}.

    A value that is not a number (an interval of a single window) passes nothing. Raises RecipeError for a key that the
    record does not have, naming those that it has.
    """
    known = numbers(record)
    verdicts = []
    for gate in gates:
        if gate.key not in known:
            raise RecipeError(f"there is no {gate.key} to set a gate on", f"there are {', '.join(known)}")
        value = known[gate.key]
        verdicts.append({"gate": str(gate), "value": value, "passed": COMPARISONS[gate.comparison](value, gate.bound)})
    return verdicts


def numbers(record: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Every number of a record by its dotted path; the bounds of an interval are called low and high."""
    found: dict[str, float] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            found |= numbers(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple) and len(value) == 2 and key.endswith("ci95"):
            found |= {f"{prefix}{key}.{end}": _number(bound) for end, bound in zip(("low", "high"), value, strict=True)}
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[prefix + key] = float(value)
    return found


def _number(bound: Any) -> float:
    return float(bound) if isinstance(bound, int | float) else math.nan

"""Gates: conditions on a record that decide whether a result is good enough, such as `kl.mean<0.05`."""

from __future__ import annotations

import difflib
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
FORM = re.compile(r"\s*([a-z][^\s<>=]*)\s*(<=|>=|<|>)\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*")


@dataclass(frozen=True)
class Gate:
    """key: the path of a number in the record, its parts joined by dots; it must compare so with `bound`."""

    key: str
    comparison: str
    bound: float

    def __str__(self) -> str:
        return f"{self.key}{self.comparison}{self.bound:.12g}"


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


def applicable(gates: Iterable[Gate], shape: Mapping[str, Any], free: tuple[str, ...] = ()) -> list[Gate]:
    """Those whose key a record of this shape has, or that begin as one of `free`, of which the shape knows nothing."""
    known = numbers(shape)
    return [gate for gate in gates if gate.key in known or (free and gate.key.startswith(free))]


def refuse_unknown(gates: Iterable[Gate], shape: Mapping[str, Any], free: tuple[str, ...] = ()) -> None:
    """Raises RecipeError for a key that a record of this shape does not have, naming those that it has."""
    known = numbers(shape)
    for gate in gates:
        if not applicable([gate], shape, free):
            near = difflib.get_close_matches(gate.key, known, 3) or known
            raise RecipeError(f"there is no {gate.key} to set a gate on", f"there are {', '.join(near)}")


def judge(gates: Iterable[Gate], record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What each gate says of a record: {"gate", "value", "passed"}.

    What was not measured (an interval of a single window, a class of tokens that the text does not have) has the value
    None, and passes nothing.
    """
    known = numbers(record)
    verdicts = []
    for gate in gates:
        value = known.get(gate.key, math.nan)
        passed = COMPARISONS[gate.comparison](value, gate.bound)
        verdicts.append({"gate": str(gate), "value": value if math.isfinite(value) else None, "passed": passed})
    return verdicts


def numbers(record: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Every number of a record by its dotted path; the bounds of `delta_ci95` are called delta.low
    and delta.high, and delta_ci95.low and delta_ci95.high too."""
    found: dict[str, float] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            found |= numbers(value, f"{prefix}{key}.")
        elif isinstance(value, list) and value and all(isinstance(part, Mapping) for part in value):
            for place, part in enumerate(value):
                found |= numbers(part, f"{prefix}{key}.{place}.")
        elif isinstance(value, list | tuple) and len(value) == 2 and key.endswith("ci95"):
            whole, short = f"{prefix}{key}", f"{prefix}{key.removesuffix('_ci95')}"
            for end, bound in zip(("low", "high"), value, strict=True):
                found |= {f"{whole}.{end}": _number(bound), f"{short}.{end}": _number(bound)}
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[prefix + key] = float(value)
    return found


def _number(bound: Any) -> float:
    return float(bound) if isinstance(bound, int | float) else math.nan

"""Gates: conditions on the numbers of a record that decide whether a result is good enough, such as `kl.mean<0.05`."""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from r1quant.errors import RecipeError
from r1quant.records.verification import GateVerdict

COMPARISONS: Mapping[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
FORM = re.compile(r"\s*([a-z][^\s<>=]*)\s*(<=|>=|<|>)\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*")
CHIEF = ("mean", "delta", "ratio", "accuracy")  # of several numbers of one thing, the one that is likely meant


@dataclass(frozen=True)
class Gate:
    """key: the path of a number in the record, its parts joined by dots; it must compare so with `bound`."""

    key: str
    comparison: str
    bound: float

    def __str__(self) -> str:
        return f"{self.key}{self.comparison}{self.bound:.12g}"

    def among(self, paths: Iterable[str]) -> bool:
        """Whether the number is one of `paths`, in which `*` stands for any name."""
        return any(fnmatchcase(self.key, path) for path in paths)


def parse(text: str) -> Gate:
    """Raises RecipeError if the text is not KEY, a comparison and a number."""
    match = FORM.fullmatch(text)
    try:
        bound = float(match[3]) if match else math.nan
    except ValueError:
        bound = math.nan
    if match is None or not math.isfinite(bound):
        raise RecipeError(f"{text!r} is not a gate", "write a key, < or >, and a number: kl.mean<0.05")
    return Gate(match[1], match[2], bound)


def refuse_unknown(gates: Iterable[Gate], paths: Sequence[str]) -> None:
    """Raises RecipeError for a key that no record has, with the one that may be meant.

    paths  those of all numbers that a record can have, as `Verification.number_paths` gives them
    """
    for gate in gates:
        if not gate.among(paths):
            near = nearest(gate.key, paths)
            hint = f"did you mean {near}?" if near else "gates are set on numbers such as kl.mean, top1 or aime.delta"
            raise RecipeError(f"there is no number {gate.key} to set a gate on", hint)


def nearest(key: str, paths: Sequence[str]) -> str | None:
    """The path that is likely meant by a key that is none: kl.mean for kl, mean and kl.meen. None if none is near."""
    inside = [path for path in paths if path.startswith(f"{key}.")] or [
        path for path in paths if path.endswith(f".{key}")
    ]
    close = difflib.get_close_matches(key, paths, 1)
    if not inside:
        return close[0] if close else None
    return min(inside, key=lambda path: (path.rpartition(".")[2] not in CHIEF, path.count(".")))


def judge(gates: Iterable[Gate], numbers: Mapping[str, float]) -> tuple[GateVerdict, ...]:
    """What each gate says of the numbers of a record.

    What was not measured (an interval of a single window, a class of tokens that the text does not have) has the value
    None, and passes nothing.
    """
    verdicts = []
    for gate in gates:
        value = numbers.get(gate.key)
        passed = value is not None and COMPARISONS[gate.comparison](value, gate.bound)
        verdicts.append(GateVerdict(str(gate), value, passed))
    return tuple(verdicts)

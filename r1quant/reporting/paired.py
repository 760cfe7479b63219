"""Two models on the same problems: which each solved, and how long their answers were. Pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from r1quant.reporting import untrusted

BINS = 12
KEPT = 60  # problems that a report names


@dataclass(frozen=True)
class Paired:
    """Problems by who solved them, and McNemar's exact p-value, two-sided, for no difference."""

    both: int
    lost: int
    gained: int
    neither: int
    p_value: float


def mcnemar(lost: int, gained: int) -> float:
    """The exact test: of the problems that only one model solved, either is as likely to be that one.

    McNemar, Psychometrika 12 (1947); two-sided, twice the smaller tail of the binomial distribution.
    """
    n, fewer = lost + gained, min(lost, gained)
    tail = sum(math.comb(n, k) for k in range(fewer + 1))
    return float(min(1, 2 * tail / 2**n))  # of integers, so that no number of problems is too large


def table(rows: Sequence[tuple[bool, bool]]) -> Paired:
    """rows: whether the baseline and the quantized model solved each problem."""
    both, lost, gained, neither = (
        rows.count(kind) for kind in ((True, True), (True, False), (False, True), (False,) * 2)
    )
    return Paired(both, lost, gained, neither, mcnemar(lost, gained))


def problems(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a verification has of problems; None where none were asked.

    A problem counts as solved where more than half of its samples are right.
    """
    aime, samples = untrusted.mapping(record, "aime"), untrusted.count(record, "aime.samples")
    if not aime or not samples:
        return None
    rows: list[dict[str, Any]] = [
        {
            "key": untrusted.text(row, "key") or "",
            "baseline": untrusted.count(row, "baseline") or 0,
            "quantized": untrusted.count(row, "quantized") or 0,
        }
        for row in untrusted.rows(aime, "table")
    ]
    solved = [(2 * row["baseline"] > samples, 2 * row["quantized"] > samples) for row in rows]
    sides = {
        side: {"accuracy": untrusted.number(aime, f"{side}.accuracy"), "ci95": untrusted.bounds(aime, f"{side}.ci95")}
        for side in ("baseline", "quantized")
    }
    changed = [row for row, (a, b) in zip(rows, solved, strict=True) if row["baseline"] != row["quantized"] or a != b]
    return {
        "set": untrusted.text(aime, "set") or "problems",
        "problems": untrusted.count(aime, "problems") or len(rows),
        "samples": samples,
        **sides,
        **{key: untrusted.number(aime, key) for key in ("delta", "p_value", "smallest_detectable")},
        "delta_ci95": untrusted.bounds(aime, "delta_ci95"),
        "paired": asdict(table(solved)) if rows else None,
        "changed": changed[:KEPT],
        "changed_in_all": len(changed),
    }


def lengths(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Tokens of answers: a histogram of each side where the record has every length, and what it says in short."""
    sides = ("baseline", "quantized")
    told = {side: untrusted.mapping(record, f"health.{side}.length") for side in sides}
    short = {side: {key: untrusted.number(told[side], key) for key in ("mean", "median", "max")} for side in sides}
    if any(short[side]["mean"] is None for side in sides):
        return None
    tokens = [untrusted.mapping(row, "tokens") for row in untrusted.rows(record, "aime.table")]
    every = {side: [n for row in tokens for n in untrusted.numbers(row, side) if n >= 0] for side in sides}
    return {
        **short,
        "ratio": untrusted.number(record, "health.length_ratio"),
        "ratio_ci95": untrusted.bounds(record, "health.length_ratio_ci95"),
        "histogram": histogram(every) if all(every.values()) else None,
    }


def histogram(every: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Counts of each side in `BINS` equal bins from 0 to the longest; edges in tokens."""
    longest = max(max(values) for values in every.values())
    width = max(1, math.ceil((longest + 1) / BINS))
    found: dict[str, Any] = {"edges": [width * i for i in range(BINS + 1)]}
    for side, values in every.items():
        places = [min(BINS - 1, int(value // width)) for value in values]
        found[side] = [places.count(i) for i in range(BINS)]
    return found

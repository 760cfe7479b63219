"""What to do: which of the variants to take, and why, in a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from r1quant.reporting import untrusted
from r1quant.reporting.formatting import figure, nbytes, percent, plural

Told = Mapping[str, Any]


def verdict(told: Sequence[Told]) -> dict[str, Any]:
    """chosen: the smallest variant all of whose gates hold; where none has gates, the one that is closest.

    passed is None where no gate was set on any.
    """
    gated = [each for each in told if each["gates"]]
    passing = [each for each in gated if all(gate["passed"] for gate in each["gates"])]
    if passing:
        best = min(passing, key=_size)
        return {"chosen": best["name"], "passed": True, "sentence": _take(best, len(gated))}
    if gated:
        best = min(gated, key=_distance)
        return {"chosen": best["name"], "passed": False, "sentence": _refuse(best, len(gated))}
    if not told:
        return {"chosen": None, "passed": None, "sentence": "No quantized model is in these records."}
    best = min(told, key=_distance)
    return {"chosen": best["name"], "passed": None, "sentence": _undecided(best)}


def _take(best: Told, gated: int) -> str:
    gates = plural(len(best["gates"]), "gate")
    among = f", the smallest of {gated} that were measured against gates" if gated > 1 else ""
    return f"Use {best['name']}{among}: it passes {'its ' + gates}. {evidence(best)}".strip()


def _refuse(best: Told, gated: int) -> str:
    failed = [gate for gate in best["gates"] if not gate["passed"]]
    said = "; ".join(f"{gate['gate']} is {figure(gate['value'])}" for gate in failed)
    missed = f"{best['name']} fails {len(failed)} of {plural(len(best['gates']), 'gate')} ({said})"
    lead = f"Do not ship this: {missed}." if gated == 1 else f"None of {gated} passes its gates. The closest, {missed}."
    return f"{lead} More bits, or rounding by what the answer needs (--guided), is what to try next."


def _undecided(best: Told) -> str:
    known = evidence(best)
    if not known:
        return f"Nothing was measured of {best['name']}: run r1quant verify {best['name']} --gate 'kl.mean<0.05'."
    return f"No gate was set, so nothing is decided: verify with --gate 'kl.mean<0.05'. {best['name']}: {known}"


def evidence(each: Told) -> str:
    """What was measured of one variant, in short."""
    parts = []
    size, bits = each["bytes"], each["bits_per_weight"]
    if size is not None or bits is not None:
        parts.append(" at ".join(filter(None, (size and nbytes(size), bits and f"{figure(bits)} bits a weight"))))
    kl = untrusted.mapping(each, "quality.kl")
    if kl:
        parts.append(f"KL divergence {figure(kl['mean'])} nats a token")
    asked = each["problems"]
    if asked and asked["quantized"]["accuracy"] is not None and asked["baseline"]["accuracy"] is not None:
        before, after = (percent(asked[side]["accuracy"]) for side in ("baseline", "quantized"))
        parts.append(f"{after} of {asked['problems']} problems right, {before} before")
    return f"{'; '.join(parts)}." if parts else ""


def _size(each: Told) -> float:
    size = each["bytes"] if each["bytes"] is not None else each["bits_per_weight"]
    return float("inf") if size is None else float(size)


def _distance(each: Told) -> float:
    mean = untrusted.number(each, "quality.kl.mean")
    return float("inf") if mean is None else mean

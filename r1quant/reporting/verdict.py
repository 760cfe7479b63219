"""What to do: which of the variants to take, and why, in a sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence

from r1quant.reporting.formatting import figure, nbytes, percent, plural
from r1quant.reporting.summary import ModelSummary, ModelVerdict

EXAMPLE_GATE = "--gate 'kl.mean<0.05'"


def verdict(models: Sequence[ModelSummary]) -> ModelVerdict:
    """Chooses the smallest variant all of whose gates hold; without gates, the one closest to the baseline."""
    gated = [model for model in models if model.gates]
    passing = [model for model in gated if all(gate.passed for gate in model.gates)]
    if passing:
        best = min(passing, key=_size)
        return ModelVerdict(best.name, True, _take(best, len(gated)))
    if gated:
        best = min(gated, key=_distance)
        return ModelVerdict(best.name, False, _refuse(best, len(gated)))
    if not models:
        return ModelVerdict(None, None, "These records describe no quantized model.")
    best = min(models, key=_distance)
    return ModelVerdict(best.name, None, _undecided(best))


def _take(best: ModelSummary, gated: int) -> str:
    count = len(best.gates)
    gates = "its gate" if count == 1 else f"all of its {count} gates"
    among = f", the smallest of {gated} variants measured against gates" if gated > 1 else ""
    return f"Use {best.name}{among}: it passes {gates}. {evidence(best)}".strip()


def _refuse(best: ModelSummary, gated: int) -> str:
    failed = [gate for gate in best.gates if not gate.passed]
    values = "; ".join(f"{gate.gate} is {figure(gate.value)}" for gate in failed)
    missed = f"{best.name} fails {len(failed)} of {plural(len(best.gates), 'gate')} ({values})"
    several = f"None of {gated} variants passes its gates. The closest, {missed}."
    lead = f"Do not ship this: {missed}." if gated == 1 else several
    return f"{lead} Try more bits next, or let gradients guide the rounding (--guided)."


def _undecided(best: ModelSummary) -> str:
    known = evidence(best)
    if not known:
        return f"{best.name} was not measured: run r1quant verify {best.name} {EXAMPLE_GATE}."
    return f"No gate was set, so nothing is decided: verify with {EXAMPLE_GATE}. {best.name}: {known}"


def evidence(model: ModelSummary) -> str:
    """What was measured of one variant, in short."""
    parts = []
    size, bits = model.nbytes, model.bits_per_weight
    if size is not None or bits is not None:
        weight = f"{figure(bits)} bits per weight" if bits else ""
        parts.append(" at ".join(filter(None, (nbytes(size) if size else "", weight))))
    if model.kl is not None:
        parts.append(f"KL divergence {figure(model.kl.mean)} nats per token")
    asked = model.problems
    if asked is not None:
        before, after = (percent(side.accuracy) for side in (asked.baseline, asked.quantized))
        parts.append(f"{after} of {asked.problems} problems solved, against {before} by the baseline")
    return f"{'; '.join(parts)}." if parts else ""


def _size(model: ModelSummary) -> float:
    size = model.nbytes if model.nbytes is not None else model.bits_per_weight
    return math.inf if size is None else size


def _distance(model: ModelSummary) -> float:
    return math.inf if model.kl is None else model.kl.mean

"""Which parts of a verification the options ask for, and which gates can be judged by them. It opens no model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from r1quant.errors import RecipeError
from r1quant.jobs.verify.options import VerifyOptions
from r1quant.metrics.gates import Gate, parse, refuse_unknown
from r1quant.records.verification import Part, Verification

WAYS = {
    Part.TEXT: "leave out --windows 0",
    Part.PROBLEMS: "add --aime mini, or other problems",
    Part.FORMATS: "add --health",
    Part.TASKS: "add --tasks with the names of tasks",
}


def parts_of(options: VerifyOptions) -> list[Part]:
    """What these options measure."""
    asked = {
        Part.TEXT: options.windows > 0,
        Part.PROBLEMS: options.aime is not None,
        Part.FORMATS: options.health,
        Part.TASKS: bool(options.tasks),
    }
    return [part for part, chosen in asked.items() if chosen]


def gates_of(options: VerifyOptions) -> list[Gate]:
    """Those of the options. Raises RecipeError for what is no gate, and for numbers that will not be measured."""
    gates = [parse(text) for text in options.gate]
    refuse_unknown(gates, Verification.number_paths())
    measured = parts_of(options)
    for gate in gates:
        if not _measured(gate, measured):
            part = next(part for part in Part if gate.among(part.number_paths))
            raise RecipeError(f"{gate.key} is not measured with these options", WAYS[part])
    return gates


def applicable_gates(gates: Sequence[str], options: VerifyOptions) -> tuple[str, ...]:
    """Those of the gates that say something of what these options measure. Raises RecipeError for numbers that no
    options measure."""
    parsed = [parse(gate) for gate in gates]
    refuse_unknown(parsed, Verification.number_paths())
    return tuple(str(gate) for gate in parsed if _measured(gate, parts_of(options)))


def _measured(gate: Gate, parts: Iterable[Part]) -> bool:
    return any(gate.among(part.number_paths) for part in parts)

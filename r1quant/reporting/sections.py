"""From facts to the document: which sections there are, in which order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from r1quant.reporting import costs, quality
from r1quant.reporting.document import Document, Section, Table
from r1quant.reporting.formatting import NONE, figure, nbytes, percent

Told = Mapping[str, Any]


def document(facts: Told) -> Document:
    """facts: the content of report.json."""
    told, verdict, hardware = facts["variants"], facts["verdict"], facts["hardware"]
    chosen = next((each for each in told if each["name"] == verdict["chosen"]), None)
    sections = (
        _gates(told),
        quality.against_size(told),
        quality.by_place(told),
        quality.on_problems(told),
        quality.of_lengths(told),
        costs.memory(hardware, verdict["chosen"]),
        costs.speed(told),
        costs.fits(hardware),
        costs.predicted(told),
        _again(told),
        *_provenance(told),
    )
    title = ", ".join(facts["models"]) or "Quantized models"
    return Document(title, verdict["sentence"], verdict["passed"], _headline(chosen), sections)


def _headline(chosen: Told | None) -> tuple[tuple[str, str], ...]:
    """The numbers that stand at the top, each with its name."""
    if chosen is None:
        return ()
    kl = (chosen["quality"] or {}).get("kl") or {}
    asked = chosen["problems"]
    found = (
        ("variant", chosen["name"]),
        ("bits a weight", figure(chosen["bits_per_weight"], 4)),
        ("bytes", nbytes(chosen["bytes"])),
        ("KL divergence (nats)", figure(kl.get("mean"))),
        ("same first token", percent((chosen["quality"] or {}).get("top1"))),
        ("accuracy, change", percent(asked["delta"], "+") if asked else NONE),
    )
    return tuple((name, value) for name, value in found if value != NONE)


def _gates(told: Sequence[Told]) -> Section:
    rows = tuple(
        (each["name"], gate["gate"], figure(gate["value"]), "passed" if gate["passed"] else "FAILED")
        for each in told
        for gate in each["gates"]
    )
    if not rows:
        return Section("gates", "Gates", ("No gate was set: `r1quant verify OUT --gate 'kl.mean<0.05'` sets one.",))
    return Section(
        "gates",
        "Gates",
        (),
        (),
        (Table("Conditions, and what came of them", ("variant", "gate", "value", "verdict"), rows),),
    )


def _again(told: Sequence[Told]) -> Section:
    lines = tuple(dict.fromkeys(line for each in told for line in each["commands"]))
    said = "In an empty folder, these make and measure the same again."
    return Section(
        "again", "Repeat it", (said if lines else "The records do not say how they were made.",), commands=lines
    )


def _provenance(told: Sequence[Told]) -> list[Section]:
    found = []
    for i, each in enumerate(told):
        rows = tuple((name, value) for name, value in each["provenance"])
        said = tuple(each["remarks"])
        table = Table("Sources, hashes, versions", ("what", "value"), rows)
        found.append(
            Section(f"provenance-{i}", f"Provenance: {each['name']}", said, (), (table,) if rows else (), (), True)
        )
    return found

"""From the summary to the document: which sections there are, in which order."""

from __future__ import annotations

from collections.abc import Sequence

from r1quant.reporting import costs, quality
from r1quant.reporting.document import Document, Section, Table
from r1quant.reporting.formatting import NONE, figure, nbytes, percent
from r1quant.reporting.summary import ModelSummary, Summary


def document(summary: Summary) -> Document:
    models, verdict, hardware = summary.variants, summary.verdict, summary.hardware
    chosen = next((model for model in models if model.name == verdict.chosen), None)
    sections = (
        _gates(models),
        quality.against_size(models),
        quality.by_place(models),
        quality.on_problems(models),
        quality.of_lengths(models),
        costs.memory(hardware, verdict.chosen),
        costs.speed(models),
        costs.fits(hardware),
        costs.predicted(models),
        _commands(models),
        *_provenance(models),
    )
    title = ", ".join(summary.models) or "Quantized models"
    return Document(title, verdict.sentence, verdict.passed, _headline(chosen), sections)


def _headline(chosen: ModelSummary | None) -> tuple[tuple[str, str], ...]:
    """The numbers that stand at the top, each with its name."""
    if chosen is None:
        return ()
    figures = (
        ("variant", chosen.name),
        ("bits per weight", figure(chosen.bits_per_weight, 4)),
        ("size", nbytes(chosen.nbytes)),
        ("KL divergence (nats)", figure(chosen.kl.mean if chosen.kl else None)),
        ("same likeliest token", percent(chosen.quality.top1 if chosen.quality else None)),
        ("change in accuracy", percent(chosen.problems.difference.delta, "+") if chosen.problems else NONE),
    )
    return tuple((name, value) for name, value in figures if value != NONE)


def _gates(models: Sequence[ModelSummary]) -> Section:
    rows = tuple(
        (model.name, gate.gate, figure(gate.value), "passed" if gate.passed else "FAILED")
        for model in models
        for gate in model.gates
    )
    if not rows:
        return Section("gates", "Gates", ("No gate was set. `r1quant verify OUT --gate 'kl.mean<0.05'` sets one.",))
    table = Table("Gates and their verdicts", ("variant", "gate", "value", "verdict"), rows)
    return Section("gates", "Gates", tables=(table,))


def _commands(models: Sequence[ModelSummary]) -> Section:
    lines = tuple(dict.fromkeys(line for model in models for line in model.commands))
    sentence = "Run in an empty folder, these commands make and measure the same models again."
    return Section(
        "again", "Reproduce it", (sentence if lines else "The records do not say how they were made.",), commands=lines
    )


def _provenance(models: Sequence[ModelSummary]) -> list[Section]:
    sections = []
    for i, model in enumerate(models):
        tables = (Table("Sources, hashes, versions", ("what", "value"), model.provenance),) if model.provenance else ()
        title = f"Provenance: {model.name}"
        sections.append(Section(f"provenance-{i}", title, model.remarks, tables=tables, folded=True))
    return sections

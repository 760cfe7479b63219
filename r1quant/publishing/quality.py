"""Sentences and tables of a card out of records: quality, speed and memory. Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from r1quant.records.bench import Bench
from r1quant.records.rows import HEADING, between, comparison_rows, gate_rows, measured_on, percent, remarks
from r1quant.records.speed_rows import HEADING as SPEED_HEADING
from r1quant.records.speed_rows import speed_rows
from r1quant.records.verification import Verification

NUMERIC = re.compile(r"[-+×–\d]|$")
VERDICTS = {True: "passed", False: "**failed**"}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table. Numbers are told by their look and stand right."""
    lines = [[_escaped(cell) for cell in row] for row in (head, *rows)]
    columns = zip(*lines[1:], strict=True) if lines[1:] else [()] * len(head)
    rule = ["--:" if all(NUMERIC.match(cell) for cell in column) else ":--" for column in columns]
    return "\n".join("| " + " | ".join(row) + " |" for row in (lines[0], rule, *lines[1:]))


def _escaped(cell: str) -> str:
    """Text that Markdown shows as it is; between backquotes it is code."""
    line = cell.replace("|", "\\|").replace("\n", " ")
    return line if line.startswith("`") else line.replace("<", "&lt;")


def verdict(record: Verification) -> str:
    """One verification in a sentence or two."""
    phrases = []
    scores, aime = record.scores, record.aime
    if scores is not None and scores.kl is not None:
        phrases.append(f"KL divergence {scores.kl.mean:.4g} nats{_within(between(scores.kl.mean_ci95, '.4g'))}")
    if scores is not None and scores.top1 is not None:
        phrases.append(f"the same likeliest token at {percent(scores.top1)} of positions")
    if scores is not None:
        phrases.append(f"perplexity × {scores.perplexity.ratio:.4f}")
    if aime is not None:
        difference = aime.difference
        change = f"{percent(difference.delta, '+')}{_within(between(difference.delta_ci95, '+.1f', 100))}"
        phrases.append(f"accuracy on {aime.problems} problems of {aime.asked.set} {change}")
    passed = sum(gate.passed for gate in record.gates)
    gates = f"{passed} of {len(record.gates)} gates hold" if record.gates else "no gates were set"
    return f"Against {record.model or 'its baseline'}: {', '.join(phrases) or 'tasks only'}; {gates}."


def comparison(record: Verification) -> str:
    """Everything that was measured, as a table."""
    return table(HEADING, [row.cells for row in comparison_rows(record)])


def about(record: Verification) -> str:
    """On what a verification was made, and what must be known to read its rows."""
    text = record.scores.text if record.scores else None
    digest = f" (sha256 of the text: {text.sha256[:12]})" if text else ""
    measured = "; ".join(measured_on(record))
    runtimes = f"Run by {record.backend}, the baseline by {record.baseline_backend}."
    lines = [f"{runtimes} Measured on {measured}{digest}." if measured else runtimes]
    return " ".join([*lines, *(f"{line[0].upper()}{line[1:]}." for line in remarks(record))])


def gates(record: Verification) -> list[str]:
    """A table of the gates, if there are any."""
    rows = [(f"`{gate}`", value, VERDICTS[passed]) for gate, value, passed in gate_rows(record.gates)]
    return [table(("gate", "value", "verdict"), rows)] if rows else []


def speeds(record: Bench) -> str:
    """Both models at every load, as a table."""
    return table(SPEED_HEADING, [row.cells for row in speed_rows(record.rows)])


def machine(record: Bench) -> str:
    """Where a bench ran."""
    env = record.environment
    threads = f"{env['threads']} threads" if "threads" in env else None
    return ", ".join(part for part in (env.get("gpu"), env.get("cpu"), env.get("machine"), threads) if part)


def _within(interval: str) -> str:
    return f" ({interval})" if interval else ""

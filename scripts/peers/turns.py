"""Runs tasks in turns: each quantized as a process of its own, made readable, scored, and put into the record."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from conformance.environments import VARIABLES, interpreter
from measuring import Cost, machine, run

from peers import record, scoring
from peers.rows import OURS, PEERS, Given, Row, command
from peers.scoring import Measure
from peers.tasks import Task
from r1quant.cli import console
from r1quant.errors import R1QuantError
from r1quant.storage import provenance

FAILURES = (click.ClickException, R1QuantError)


@dataclass(frozen=True)
class Workplace:
    """pythons: interpreters by environment, where they are not to be built. begun: names this run in the record."""

    pythons: Mapping[str, str]
    record: Path
    begun: str

    def python(self, row: Row) -> Path:
        if row.tool == OURS:
            return Path(sys.executable)
        return Path(self.pythons.get(row.environment) or interpreter(row.environment))


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def compare(tasks: Sequence[Task], measure: Measure, place: Workplace, repeats: int) -> None:
    """Every task once in each turn; scored after its first. One that failed is not begun again."""
    warm: set[str] = set()
    broken: set[Path] = set()
    for turn in range(repeats):
        for task in (task for task in tasks if task.out not in broken):
            try:
                if task.row.tool not in warm:
                    warm_up(task, place)
                    warm.add(task.row.tool)
                timed(task, place)
                if turn == 0:
                    score(task, measure, place)
            except FAILURES as error:
                broken.add(task.out)
                failed(task, error, place)


def rescore(tasks: Sequence[Task], measure: Measure, place: Workplace) -> None:
    """Scores what earlier runs left, on texts that the record lacks or has."""
    for task in tasks:
        try:
            score(task, measure, place)
        except FAILURES as error:
            console.note(f"{task.title} was not scored: {error}")


def warm_up(task: Task, place: Workplace) -> None:
    """Untimed, so that what is compiled once is compiled by then."""
    console.note(f"{task.row.tool}: warming up")
    quantize(replace(task.row, windows=None), task.small, task.small.model.with_name(task.row.name), place)


def quantize(row: Row, given: Given, out: Path, place: Workplace) -> Cost:
    """The whole process, into an empty place and with an empty cache."""
    cache = out.with_name(f"{out.name}.cache")
    for folder in (out, out.with_name(f"{out.name}.run"), cache):
        shutil.rmtree(folder, ignore_errors=True)
    log, variables = out.with_name(f"{out.name}.log"), {"R1QUANT_CACHE": str(cache)}
    if row.environment:
        variables |= VARIABLES
    asked = command(row, given, out, place.python(row))
    return run(asked, log, variables, cwd=out.parent)  # some leave files where they run


def timed(task: Task, place: Workplace) -> None:
    """Quantizes and puts the cost into the record, beside what this run has had of it already."""
    begun = {"run": place.begun, "date": now(), "machine": machine()}
    cost = quantize(task.row, task.given, task.out, place)
    console.note(f"{task.title}: {cost.wall_seconds:.1f} s, {cost.peak_rss_bytes / 1e6:.0f} MB")
    said = {} if task.row.tool == OURS else json.loads(task.beside(".json").read_text("utf-8"))
    seconds = {"quantize_seconds": said["quantize_seconds"]} if said else {}
    old = record.find(place.record, task.entry)
    if old is None or old["run"] != place.begun or "error" in old:
        old = {**task.entry, **begun, "versions": said.get("versions") or our_versions(), "quality": {}, "runs": []}
    runs = [*old["runs"], asdict(cost) | seconds]
    size = {"bits_per_weight": bits_per_weight(task, place)}
    record.merge(place.record, {**old, "median": middle(runs), **size, "runs": runs})


def our_versions() -> dict[str, str]:
    """With the commit, since the version of a package under development tells little."""
    asked = ["git", "-C", str(PEERS), "describe", "--always", "--dirty"]
    commit = subprocess.run(asked, check=False, capture_output=True, text=True).stdout.strip()
    return {OURS: provenance.VERSION, "commit": commit, **provenance.versions(("torch", "transformers"))}


def readable(task: Task) -> Path:
    """What r1quant reads: the result itself, or its float weights."""
    return task.beside("-floats") if task.row.floats else task.out


def bits_per_weight(task: Task, place: Workplace) -> float:
    """Of the result, which is made readable where it is not."""
    if not task.row.floats:
        return scoring.bits_per_weight(task.out, task.given.model)
    floats = readable(task)
    shutil.rmtree(floats, ignore_errors=True)
    script = [str(place.python(task.row)), str(PEERS / task.row.floats)]
    run([*script, str(task.given.model), str(task.out), str(floats)], task.beside("-floats.log"), VARIABLES)
    nbytes = json.loads(task.beside("-floats.json").read_text("utf-8"))["linear_bytes"]
    return scoring.bits_of(nbytes, task.given.model)


def score(task: Task, measure: Measure, place: Workplace) -> None:
    """Puts the quality on every text into the record. Raises click.ClickException where it lacks the task."""
    for text in measure.texts:
        found = scoring.score(readable(task), task.given.model, text, measure)
        old = record.find(place.record, task.entry)
        if old is None or "error" in old:
            raise click.ClickException("the record does not know when it was made, and at what cost")
        record.merge(place.record, {**old, "quality": {**old["quality"], text.name: found}})
        console.note(f"{task.title}, {text.name}: KL {found['kl']['mean']:.4f}")


def failed(task: Task, error: click.ClickException | R1QuantError, place: Workplace) -> None:
    console.note(f"{task.title} failed: {error.message}")
    begun = {"run": place.begun, "date": now(), "machine": machine()}
    record.merge(place.record, {**task.entry, **begun, "error": reason(error)})


def reason(error: click.ClickException | R1QuantError) -> str:
    """The last line, or how the process ended: what lies between names paths of this machine."""
    first, *others = error.message.strip().splitlines()
    return others[-1][:300] if others else first.partition(":")[0]


def middle(runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The median of every figure, each on its own."""
    return {key: statistics.median(entry[key] for entry in runs) for key in runs[0]}

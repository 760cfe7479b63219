"""Proves that other programs read our checkpoints as we do, and that we read theirs: same weights bit for bit, same
log-probabilities, same greedy text.

    python scripts/run_conformance.py

Models are quantized once and exported to every format; `check` compares every two of the results, and each reader
loads them in an environment of its own. Then other programs make checkpoints, which r1quant reads. Writes
reports/conformance.json; exits 1 where anything does not agree. Readings that are known to miss the bar are listed in
conformance/readers.py with the reason; they are recorded as short of it, and fail where they become worse.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import click
import numpy as np
import smollm2
from conformance.comparison import NEW_TOKENS, Expected, compare, expect
from conformance.environments import HERE, interpreter
from conformance.peers import LAYERS, MAKERS, WINDOWS, Maker, make
from conformance.readers import FLOAT32, READERS, Job, Limit, Reader, ask
from conformance.runs import REFUSED, VARIANTS, Run, Variant, runs_of
from measuring import write_record

import r1quant
from r1quant.checkpoint.resolve import EMBEDDED, open_model
from r1quant.checkpoint.tokenizer import Tokenizer
from r1quant.cli import console
from r1quant.data import windows
from r1quant.errors import R1QuantError
from r1quant.jobs.artifacts import open_artifact
from r1quant.storage import provenance
from r1quant.tinyr1 import problems

REPORT = HERE.parent.parent / "reports" / "conformance.json"
HELD_OUT, QUESTIONS = "heldout.jsonl", 4
Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Made:
    """A run that was made: the folder of each variant that its grid allows."""

    run: Run
    expected: Expected
    folders: Mapping[str, Path]


@dataclass
class Record:
    """What the report holds. A row that did not pass, nor is a known shortfall, fails the whole. seconds: by reader."""

    exports: list[Row] = field(default_factory=list)
    checks: list[Row] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    peers: list[Row] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def short(self) -> int:
        """Readings that miss the bar as they are known to."""
        return sum("short" in row for row in self.rows)

    @property
    def passed(self) -> bool:
        everything = self.exports + self.checks + self.rows + self.peers
        return bool(everything) and all(row["passed"] or "short" in row for row in everything)


def questions() -> list[str]:
    text = Path(problems.__file__).with_name(HELD_OUT).read_text("utf-8")
    return [json.loads(line)["problem"] for line in islice(text.splitlines(), QUESTIONS)]


def prepare(run: Run, work: Path, count: int, record: Record) -> Made:
    """Quantizes, exports to every format that can hold the result, and reads it back."""
    console.note(f"quantizing {run.name}")
    place = work / run.name
    place.mkdir()
    source = place / run.format
    r1quant.quantize(smollm2.gguf() if run.model == "smollm2" else run.model, source, **run.options)
    folders = {run.format: source}
    for variant in VARIANTS:
        if variant.name != run.format:
            row = export(run, variant, source, place / variant.name)
            record.exports.append(row)
            if "bytes" in row:
                folders[variant.name] = place / variant.name
    asked = questions() if run.model == EMBEDDED else []
    return Made(run, expect(open_artifact(source), place, "tokens", count, asked), folders)


def export(run: Run, variant: Variant, source: Path, out: Path) -> Row:
    """One export, or the refusal that is right for it."""
    row: Row = {"run": run.name, "variant": variant.name}
    words = next((refused.words for refused in REFUSED if refused.holds(run, variant.name)), "")
    try:
        written = r1quant.export(source, variant.format, out, **variant.options).written[0]
    except R1QuantError as error:
        return row | {"passed": bool(words) and words in error.message, "refused": error.message, "hint": error.hint}
    exact = not written.inexact
    return row | {"passed": not words and exact >= variant.exact, "bytes": written.nbytes, "exact": exact}


def check_all(made: Made, record: Record) -> None:
    """Every two exact variants of a run hold the same tensors."""
    exact = [variant.name for variant in VARIANTS if variant.exact and variant.name in made.folders]
    for a, b in combinations(exact, 2):
        found = r1quant.check(made.folders[a], made.folders[b]).as_dict()
        kept = {key: found[key] for key in ("identical", "tensors", "linears", "first_difference", "only_in_one")}
        record.checks.append({"run": made.run.name, "a": a, "b": b, "passed": found["identical"], **kept})


def read_all(reader: Reader, python: Path, made: list[Made], work: Path) -> list[Row]:
    """What a reader makes of every variant that it reads: a row each."""
    asked = [each for each in made if each.run.bits is not None or not reader.uniform]
    pairs = [(each, variant) for each in asked for variant in reader.variants if variant in each.folders]
    jobs = [Job(f"{e.run.name}-{v}", e.folders[v], e.expected.tokens, e.expected.prompts, NEW_TOKENS) for e, v in pairs]
    rows = []
    for (each, variant), answer in zip(pairs, ask(reader, python, jobs, work), strict=True):
        refusal = reader.refusal(variant, each.run.symmetric, each.run.bits is None)
        shortfall = reader.shortfall(each.run.name, variant)
        compared = compare(each.expected, answer, reader.variants[variant], refusal, shortfall)
        rows.append({"reader": reader.name, "run": each.run.name, "variant": variant, **compared})
    return rows


def read_peers(maker: Maker, work: Path, count: int, pythons: Mapping[str, str]) -> list[Row]:
    """Checkpoints of another program as we read them, held against how it reads them itself."""
    checkpoint = open_model(EMBEDDED)
    model = smollm2.export(checkpoint, work / "model", layers=LAYERS)

    def tokens() -> np.ndarray:
        vocabulary = checkpoint.config["vocab_size"]
        return windows.evaluation_text(None, Tokenizer.of(checkpoint), *WINDOWS, vocabulary=vocabulary).tokens

    console.note(f"making checkpoints with {maker.name}")
    folders = make(maker, python_of(maker.environment, pythons), model, work, tokens)
    rows, jobs = [], {}
    for name, folder in folders.items():
        error = folder / "error.txt"
        if error.is_file():
            rows.append({"maker": maker.name, "checkpoint": name, "passed": False, "error": error.read_text("utf-8")})
            continue
        for path in (*model.glob("tokenizer*"), *model.glob("*.jinja")):  # not all makers copy them
            if not (folder / path.name).exists():
                (folder / path.name).write_bytes(path.read_bytes())
        try:
            jobs[name] = expect(open_artifact(folder), work, f"{maker.name}-{name}-tokens", count, [])
        except R1QuantError as failed:
            rows.append({"maker": maker.name, "checkpoint": name, "passed": False, "error": failed.message})
    for reader in READERS:
        mine = [name for name in jobs if reader.name in maker.readers[name]]
        listed = [Job(f"{maker.name}-{name}", folders[name], jobs[name].tokens, [], 0) for name in mine]
        answers = ask(reader, python_of(reader.environment, pythons), listed, work) if mine else []
        for name, answer in zip(mine, answers, strict=True):
            compared = compare(jobs[name], answer, limit_of(reader, name), "")
            rows.append({"maker": maker.name, "checkpoint": name, "reader": reader.name, **compared})
    return rows


def limit_of(reader: Reader, name: str) -> Limit:
    return next((limit for variant, limit in reader.variants.items() if name.startswith(variant)), FLOAT32)


def python_of(environment: str, pythons: Mapping[str, str]) -> Path:
    return Path(pythons.get(environment) or interpreter(environment))


def show(record: Record) -> None:
    for row in record.exports:
        if "refused" in row or not row["passed"]:
            found = "refused, as it should be" if row["passed"] else "FAILED"
            console.note(f"{row['run']} to {row['variant']}: {found}: {row.get('refused', 'was not to be exact')}")
    same = sum(row["identical"] for row in record.checks)
    console.note(f"check: {same} of {len(record.checks)} pairs of exports are identical")
    for row in record.checks:
        if not row["passed"]:
            console.note(f"{row['run']}: {row['a']} and {row['b']} differ: {row['first_difference']}")
    lines = [["reader", "made", "as", "weights", "|dlogp|", "KL", "text", ""]]
    lines += [_line(row, row["reader"], row["run"], row["variant"]) for row in record.rows]
    lines += [_line(row, row.get("reader", "r1quant"), row["maker"], row["checkpoint"]) for row in record.peers]
    console.table(lines)
    console.note(summary(record))


def summary(record: Record) -> str:
    """Every reading counted, by its verdict."""
    verdicts = Counter(verdict(row) for row in record.rows + record.peers)
    return "readings: " + ", ".join(f"{count} {name}" for name, count in verdicts.items())


def verdict(row: Row) -> str:
    if not row["passed"]:
        return "SHORT" if "short" in row else "FAILED"
    return "refused" if "error" in row else "ok"


def _line(row: Row, *names: str) -> list[str]:
    if "error" in row:
        console.note(f"{', '.join(names)}: {row['error'].strip().splitlines()[-1]}")
        return [*names, *[""] * 4, verdict(row)]
    equal = f"{row['linears'] - len(row['differing_linears'])}/{row['linears']}" if "linears" in row else ""
    numbers = [f"{row[key]:.0e}" if key in row else "" for key in ("max_delta_log_probability", "mean_kl")]
    text = f"{row['same_generation']}/{row['prompts']}" if "prompts" in row else ""
    return [*names, equal, *numbers, text, verdict(row)]


@click.command(help=__doc__)
@click.option("--reader", "readers", multiple=True, type=click.Choice([r.name for r in READERS]), help="Only these.")
@click.option("--model", "models", multiple=True, help="Only these: smollm2, tiny-r1, or any folder or GGUF file.")
@click.option("--python", multiple=True, metavar="ENVIRONMENT=PATH", help="An interpreter that is there already.")
@click.option("--tokens", default=256, show_default=True, help="How many tokens are scored.")
@click.option("--peers/--no-peers", default=True, help="Whether other programs' checkpoints are read.")
@click.option("--report", type=click.Path(path_type=Path), default=REPORT, help="Where the record goes.")
def main(
    readers: tuple[str, ...],
    models: tuple[str, ...],
    python: tuple[str, ...],
    tokens: int,
    peers: bool,
    report: Path,
) -> None:
    begun, record = time.monotonic(), Record()
    pythons = {name: path for name, _, path in (entry.partition("=") for entry in python)}
    with tempfile.TemporaryDirectory() as folder:
        work, made = Path(folder), []
        for run in runs_of(models):
            try:
                made.append(prepare(run, work, tokens, record))
            except R1QuantError as error:
                record.exports.append({"run": run.name, "variant": "-", "passed": False, "refused": error.message})
                continue
            console.note(f"checking every two of {len(made[-1].folders)} exports of {run.name}")
            check_all(made[-1], record)
        for reader in (reader for reader in READERS if not readers or reader.name in readers):
            place = python_of(reader.environment, pythons)
            console.note(f"reading with {reader.name}")
            started = time.monotonic()
            record.rows += read_all(reader, place, made, work)
            record.seconds[reader.name] = round(time.monotonic() - started, 1)
        if peers and not readers and not models:
            for maker in MAKERS:
                place = work / maker.name
                place.mkdir()
                record.peers += read_peers(maker, place, tokens, pythons)
    written = {
        "schema": "r1quant.conformance/3",
        "passed": record.passed,
        "short": record.short,
        "tokens": tokens,
        "new_tokens": NEW_TOKENS,
        "seconds": round(time.monotonic() - begun, 1),
        "seconds_by_reader": record.seconds,
        "environment": provenance.environment(),
        "exports": record.exports,
        "checks": record.checks,
        "rows": record.rows,
        "peers": record.peers,
    }
    write_record(report, written)
    show(record)
    sys.exit(0 if record.passed else 1)


if __name__ == "__main__":
    main()

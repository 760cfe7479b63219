"""Makes each file by processes of their own, scores it, and puts it into the record."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import smollm2
from conformance.environments import VARIABLES, interpreter
from measuring import R1QUANT, Cost, machine, run
from peers import record, scoring
from peers.scoring import Measure
from peers.texts import Text
from peers.turns import FAILURES, now, our_versions, reason

from ggufpeers import rows, tools
from ggufpeers.rows import AUTO_ROUND, LLAMA, NONE, OURS, Given, Row
from r1quant.checkpoint.gguf.header import read_gguf_header
from r1quant.checkpoint.resolve import open_model
from r1quant.checkpoint.safetensors import Checkpoint
from r1quant.checkpoint.tokenizer import Tokenizer
from r1quant.cli import console
from r1quant.core.blocktypes import BLOCK_TYPES
from r1quant.data import windows

SCHEMA = "r1quant.gguf-peers/1"
EMBEDDING, HEAD = "token_embd.weight", "output.weight"
KINDS = {0: "F32", 1: "F16", 30: "BF16"} | {of.number: name for name, of in BLOCK_TYPES.items()}


@dataclass(frozen=True)
class Task:
    """A row and a type. out: the file, or the folder that it is in. entry: what the record says of it beforehand."""

    row: Row
    kind: str
    given: Given
    out: Path
    entry: Mapping[str, Any]

    @property
    def title(self) -> str:
        return f"{self.row.name} {self.kind}"

    @property
    def file(self) -> Path:
        """The GGUF file. Raises click.ClickException if there is none."""
        files = [self.out] if self.out.suffix == ".gguf" else sorted(self.out.glob("*.gguf"))
        if len(files) != 1 or not files[0].is_file():
            raise click.ClickException(f"{self.title}: there is no file of it")
        return files[0]


@dataclass(frozen=True)
class Workplace:
    """llama: the folder of llama.cpp's programs, or None if it is to be compiled. begun: names this run.
    shared: whether the files of one of our rows share its sensitivity pass, which the time of the first alone has."""

    llama: Path | None
    pythons: Mapping[str, str]
    record: Path
    begun: str
    measure: Measure
    shared: bool = False

    @property
    def auto_round(self) -> Path:
        return Path(self.pythons.get(AUTO_ROUND) or interpreter(AUTO_ROUND))

    def programs(self) -> Path:
        return tools.programs(self.llama)

    def merge(self, entry: Mapping[str, Any]) -> None:
        record.merge(self.record, entry, SCHEMA)


def prepared(source: Checkpoint, place: Path, text: Text, layers: int | None, shape: tuple[int, int]) -> Given:
    """The model as a folder and as a GGUF file of floats, and the tokens, in `place`."""
    samples, seq_len = shape
    folder = smollm2.export(source, place / "model", layers)
    floats = place / "floats.gguf"
    if not floats.is_file():
        run([*R1QUANT, "export", str(folder), "--to", "gguf", "-o", str(floats)], place / "floats.log")
    assert text.spec is not None  # a mixed text is a file
    tokens = place / "tokens.npy"
    np.save(tokens, windows.load(text.spec, Tokenizer.of(source), samples, seq_len, 0).tokens)
    return Given(folder, floats, Path(text.spec), tokens, samples, seq_len)


def tasks(
    chosen: Sequence[Row], kinds: Sequence[str], source: Checkpoint, given: Given, layers: int | None
) -> Iterator[Task]:
    """Every row at every type that it has, type by type."""
    taken = windows.load(str(given.text), Tokenizer.of(source), given.samples, given.seq_len, 0)
    said = {"source": taken.source, "sha256": taken.sha256, "windows": taken.windows, "seq_len": given.seq_len}
    for kind in kinds:
        for row in (row for row in chosen if row.makes(kind)):
            suffix = ".gguf" if row.tool == LLAMA else ""
            entry = {"model": source.name, "layers": layers, "type": kind, **row.told, "calibration": said}
            yield Task(row, kind, given, given.floats.with_name(f"{row.name}-{kind}{suffix}"), entry)


def compare(asked: Sequence[Task], place: Workplace) -> None:
    """One after the other; one that fails stops nothing."""
    for task in asked:
        try:
            made(task, place)
            score(task, place)
        except FAILURES as error:
            console.note(f"{task.title} failed: {error.message}")
            place.merge({**task.entry, **_begun(place), "error": reason(error)})


def rescore(asked: Sequence[Task], place: Workplace) -> None:
    """Scores what earlier runs left, without making it anew."""
    for task in asked:
        try:
            score(task, place)
        except FAILURES as error:
            console.note(f"{task.title} was not scored: {error.message}")


def made(task: Task, place: Workplace) -> None:
    """Makes the file, and puts size and cost into the record."""
    begun, steps = _begun(place), _steps(task, place)
    kinds = {name: KINDS[tensor.kind] for name, tensor in read_gguf_header(task.file).tensors.items()}
    size = {
        "bytes": task.file.stat().st_size,
        "types": dict(sorted(Counter(kinds.values()).items())),
        "embedding": kinds[EMBEDDING],
        "head": kinds.get(HEAD, kinds[EMBEDDING]),
    }
    costs = {name: asdict(cost) for name, cost in steps.items()}
    seconds = sum(cost.wall_seconds for cost in steps.values())
    console.note(f"{task.title}: {seconds:.1f} s, {size['bytes']} bytes")
    shared = {"shared": True} if place.shared and task.row.tool == OURS else {}
    entry = {**task.entry, **shared, **begun, "versions": _versions(task), **size, "steps": costs, "seconds": seconds}
    place.merge({**entry, "quality": {}})


def score(task: Task, place: Workplace) -> None:
    """Puts the quality on every text into the record. Raises click.ClickException if it lacks the task."""
    for text in place.measure.texts:
        found = scoring.score(task.file, task.given.model, text, place.measure, task.out)
        old = record.find(place.record, task.entry)
        if old is None or "error" in old:
            raise click.ClickException("the record does not know when it was made, and at what cost")
        place.merge({**old, "quality": {**old["quality"], text.name: found}})
        console.note(f"{task.title}, {text.name}: KL {found['kl']['mean']:.5f}")


def _steps(task: Task, place: Workplace) -> dict[str, Cost]:
    row, kind, given, out = task.row, task.kind, task.given, task.out
    log, cache = out.with_name(f"{out.name}.log"), out.with_name(f"{row.name if place.shared else out.name}.cache")
    for folder in (out, out.with_name(f"{out.name}.run"), *(() if place.shared else (cache,))):
        shutil.rmtree(folder, ignore_errors=True)
    if row.tool == OURS:
        return {"quantize": run(rows.quantize(row, kind, given, out), log, {"R1QUANT_CACHE": str(cache)})}
    if row.tool == AUTO_ROUND:
        asked = rows.tune(row, kind, given, out, place.auto_round)
        return {"quantize": run(asked, log, VARIABLES, cwd=out.parent)}
    matrix = None if row.matrix == NONE else given.floats.with_name(f"{row.matrix}-{_short(task)}.imatrix.gguf")
    steps = {} if matrix is None else {"importance": _importance(task, matrix, place)}
    return steps | {"quantize": run(rows.requantize(kind, given, matrix, out, place.programs()), log)}


def _importance(task: Task, matrix: Path, place: Workplace) -> Cost:
    """Measured once for all types; what it cost is kept beside it."""
    known = matrix.with_suffix(".json")
    if not (matrix.is_file() and known.is_file()):
        cache = matrix.with_suffix(".cache")
        shutil.rmtree(cache, ignore_errors=True)
        asked = rows.measure(task.row.matrix, task.given, matrix, place.programs(), Path(sys.executable))
        cost = run(asked, matrix.with_suffix(".log"), {"R1QUANT_CACHE": str(cache)})
        known.write_text(json.dumps(asdict(cost)), "utf-8")
    return Cost(**json.loads(known.read_text("utf-8")))


def _short(task: Task) -> str:
    sha256: str = task.entry["calibration"]["sha256"]
    return sha256[:8]


def _versions(task: Task) -> dict[str, Any]:
    if task.row.tool == OURS:
        return our_versions()
    if task.row.tool == LLAMA:
        return {LLAMA: tools.VERSION}
    versions: dict[str, Any] = json.loads(Path(f"{task.out}.json").read_text("utf-8"))["versions"]
    return versions


def _begun(place: Workplace) -> dict[str, Any]:
    return {"run": place.begun, "date": now(), "machine": machine()}


def source_of(model: str) -> Checkpoint:
    """smollm2, or what `r1quant.open_model` takes."""
    return open_model(smollm2.gguf() if model == "smollm2" else model)

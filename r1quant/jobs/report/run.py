"""report: finds records, sums them up and writes the report, or says in which files one that is there differs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from r1quant.core.json import JsonObject
from r1quant.errors import RecipeError
from r1quant.extras import need
from r1quant.jobs.artifacts import config_of
from r1quant.jobs.checkpoint_writer import RECORD
from r1quant.jobs.report.commands import commands
from r1quant.jobs.report.hardware import hardware
from r1quant.records.quantization import Quantization, QuantizeRun
from r1quant.records.reading import clean
from r1quant.records.record import Record, schema_of
from r1quant.records.table import read_record
from r1quant.reporting.hardware import HardwareSummary
from r1quant.reporting.sections import document
from r1quant.reporting.summarize import summarize
from r1quant.reporting.summary import Summary
from r1quant.reporting.untrusted import plain
from r1quant.reporting.variants import KINDS, VariantRecords, grouped
from r1quant.storage import atomic
from r1quant.storage.jsonfile import read_object

LARGEST, MOST = 1 << 26, 10_000  # bytes of a record, files that are looked at in a folder
HTML, MARKDOWN, SUMMARY, PNG = "report.html", "report.md", "report.json", "report.png"
GENERATOR = re.compile(r'<meta name="generator" content="([^"]*)">')
DRAWN = re.compile(r"<svg .*?</svg>|<meta name=\"generator\"[^>]*>|<footer>.*?</footer>", re.DOTALL)


@dataclass(frozen=True)
class Reported:
    """files: what was written, or compared; differing: of these, those that are not what would be written now.

    note: what was left out of the comparison; None if nothing was.
    """

    files: tuple[Path, ...]
    verdict: str
    records: int
    differing: tuple[str, ...] = ()
    note: str | None = None

    def as_dict(self) -> JsonObject:
        sizes = [{"path": str(path), "bytes": path.stat().st_size} for path in self.files if path.is_file()]
        return {"files": sizes, "verdict": self.verdict, "records": self.records,
                "differing": list(self.differing), "note": self.note}  # fmt: skip


def report(named: Sequence[str | Path], out: str | Path, png: bool = False, check: bool = False) -> Reported:
    """Reads records, in files and in folders, and writes a report of them into the folder `out`.

    check  writes nothing: what is in `out` is compared with what would be written

    Raises RecipeError if there is no record, or a named file is none, and MissingDependency.
    """
    need("report")
    out = Path(out)
    records = [record for name in (named or (".",)) for record in _records(Path(name), out)]
    if not records:
        where = ", ".join(map(str, named)) or "this folder"
        raise RecipeError(
            f"there are no records in {where}",
            "name an output of quantize, or what verify --record or bench --record wrote",
        )
    variants = grouped(records)
    summary = summarize(variants, _modelled(variants), {variant.name: commands(variant) for variant in variants})
    contents = _contents(summary, png)
    files = tuple(out / name for name in contents)
    if check:
        differing, note = _compared(out, contents)
        return Reported(files, summary.verdict.sentence, len(records), differing, note)
    out.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        atomic.write_bytes(out / name, content)
    return Reported(files, summary.verdict.sentence, len(records))


def _contents(summary: Summary, png: bool) -> dict[str, bytes]:
    """The files of a report by name."""
    from r1quant.reporting import html, markdown, plots

    shown = document(summary)
    text = json.dumps(summary.as_dict(), indent=1, ensure_ascii=True) + "\n"
    contents = {HTML: html.page(shown).encode(), MARKDOWN: markdown.page(shown).encode(), SUMMARY: text.encode()}
    main = next(iter(shown.charts), None)
    if png and main is not None:
        contents[PNG] = plots.png(main)
    return contents


def _modelled(variants: Sequence[VariantRecords]) -> HardwareSummary | None:
    """By the memory model; only if all variants are of one model, and a run says what its config is."""
    config = next((one.run.config for one in variants if one.run and isinstance(one.run.config, Mapping)), None)
    quantizations = {one.name: one.quantization for one in variants if one.quantization is not None}
    alike = len({record.config for record in quantizations.values()}) == 1
    return hardware(config, quantizations) if config and alike else None


def _records(path: Path, out: Path) -> Iterator[tuple[str, Record]]:
    """Raises RecipeError if a named file is no record."""
    if path.is_dir():
        for file in _files(path, out):
            record = _read(read_object(file, LARGEST))
            if record is not None:
                yield from _with_config(file, record)
        return
    if not path.is_file():
        raise RecipeError(f"there is no file or folder {path}", "name records, or folders that hold some")
    content = read_object(path, LARGEST)
    record = _read(content)
    if record is None:
        schema, kinds = schema_of(content) or "none", ", ".join(kind.SCHEMA for kind in KINDS)
        raise RecipeError(
            f"{path} is no record that a report knows (schema: {clean(schema)[:40]})", f"give one of {kinds}"
        )
    yield from _with_config(path, record)


def _read(content: object) -> Record | None:
    """A record of a kind that reports are made of. Figures of it that are damaged are taken for missing."""
    record = read_record(content, lenient=True)
    return record if isinstance(record, KINDS) else None


def _with_config(path: Path, record: Record) -> Iterator[tuple[str, Record]]:
    """A record, and after one that lies in an output of quantize what that folder says besides."""
    folder = path.resolve().parent
    config = config_of(folder) if path.name == RECORD else None
    yield folder.name if config is not None else path.stem, record
    if config is not None and isinstance(record, Quantization):
        weights = [file for file in folder.iterdir() if file.is_file() and file.name != RECORD]
        size = sum(file.stat().st_size for file in weights)
        run: JsonObject = {"schema": QuantizeRun.SCHEMA, "config": dict(config)}
        yield folder.name, replace(QuantizeRun.from_json(run, lenient=True), record=record, output_bytes=size)


def _files(folder: Path, out: Path) -> list[Path]:
    """JSON files below a folder in order of their names, less those of unfinished runs and of the report itself."""
    paths = []
    for path in folder.rglob("*.json"):
        inner = path.relative_to(folder).parts[:-1]
        if not any(part.endswith(".run") or part.startswith(".") for part in inner) and path.parent != out:
            paths.append(path)
        if len(paths) > MOST:
            raise RecipeError(f"{folder} holds more than {MOST} JSON files", "name the records")
    return sorted(paths)


def _compared(out: Path, contents: Mapping[str, bytes]) -> tuple[tuple[str, ...], str | None]:
    """The names of the files that differ; charts are left out if another matplotlib drew them, and a note says so."""
    there = {name: (out / name).read_bytes() if (out / name).is_file() else None for name in contents}
    note, differing = None, []
    before, now = _generator(there[HTML]), _generator(contents[HTML])
    for name, content in contents.items():
        old = there[name]
        if name in (HTML, PNG) and old is not None and before != now:
            note = f"written by {before}, but this is {now}: charts are not compared"
            old, content = (b"", b"") if name == PNG else (_undrawn(old), _undrawn(content))
        if old != content:
            differing.append(name)
    return tuple(differing), note


def _generator(page: bytes | None) -> str:
    tag = GENERATOR.search((page or b"").decode("utf-8", "replace"))
    return plain(tag[1]) if tag else "something else"


def _undrawn(page: bytes) -> bytes:
    return DRAWN.sub("", page.decode("utf-8", "replace")).encode()

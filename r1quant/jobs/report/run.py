"""report: finds records, makes facts of them and writes the report, or says where one that is there differs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1quant.errors import CheckpointError, RecipeError
from r1quant.extras import need
from r1quant.jobs.checkpoint_writer import RECORD
from r1quant.jobs.report.commands import commands
from r1quant.jobs.report.hardware import hardware
from r1quant.reporting import untrusted
from r1quant.reporting.sections import document
from r1quant.reporting.summary import summary
from r1quant.reporting.variants import SCHEMAS, VariantRecords, gathered
from r1quant.storage import atomic

LARGEST, MOST = 1 << 26, 10_000  # bytes of a record, files that are looked at in a folder
HTML, MARKDOWN, FACTS, PNG = "report.html", "report.md", "report.json", "report.png"
GENERATOR = re.compile(r'<meta name="generator" content="([^"]*)">')
DRAWN = re.compile(r"<svg .*?</svg>|<meta name=\"generator\"[^>]*>|<footer>.*?</footer>", re.DOTALL)
Records = list[tuple[str, Mapping[str, Any]]]


@dataclass(frozen=True)
class Reported:
    """files: what was written, or compared; differing: of these, those that are not what would be written now.

    note: what was left out of the comparison; None where nothing was.
    """

    files: tuple[Path, ...]
    verdict: str
    records: int
    differing: tuple[str, ...] = ()
    note: str | None = None

    def as_dict(self) -> dict[str, Any]:
        sizes = [{"path": str(path), "bytes": path.stat().st_size} for path in self.files if path.is_file()]
        return {"files": sizes, "verdict": self.verdict, "records": self.records,
                "differing": list(self.differing), "note": self.note}  # fmt: skip


def report(named: Sequence[str | Path], out: str | Path, png: bool = False, check: bool = False) -> Reported:
    """Reads records, in files and in folders, and writes a report of them into the folder `out`.

    check  writes nothing: what is in `out` is compared with what would be written

    Raises RecipeError where there is no record, CheckpointError where a file cannot be read, MissingDependency.
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
    made = _made(records, png)
    verdict = json.loads(made[FACTS])["verdict"]["sentence"]
    files = tuple(out / name for name in made)
    if check:
        differing, note = _compared(out, made)
        return Reported(files, verdict, len(records), differing, note)
    out.mkdir(parents=True, exist_ok=True)
    for name, content in made.items():
        atomic.write_bytes(out / name, content)
    return Reported(files, verdict, len(records))


def _made(records: Records, png: bool) -> dict[str, bytes]:
    """The files of a report by name."""
    from r1quant.reporting import html, markdown, plots

    variants = gathered(records)
    told = summary(variants, _modelled(variants), {each.name: commands(each) for each in variants})
    text = json.dumps(told, indent=1, ensure_ascii=True) + "\n"
    shown = document(json.loads(text))
    made = {HTML: html.page(shown).encode(), MARKDOWN: markdown.page(shown).encode(), FACTS: text.encode()}
    main = next(iter(shown.charts), None)
    if png and main is not None:
        made[PNG] = plots.png(main)
    return made


def _modelled(variants: Sequence[VariantRecords]) -> dict[str, Any] | None:
    """By the memory model; only where all variants are of one model, and a run says what its config is."""
    config = next((found for each in variants if (found := untrusted.mapping(each.run, "config"))), None)
    recorded = {each.name: each.made for each in variants if each.made}
    alike = len({json.dumps(each.made.get("config")) for each in variants if each.made}) == 1
    return hardware(config, recorded) if config and alike else None


def _records(path: Path, out: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Raises CheckpointError where a named file cannot be read, RecipeError where it is no record."""
    if path.is_dir():
        for found in _files(path, out):
            record = _read(found)
            if record is not None and record.get("schema") in SCHEMAS:
                yield from _with_config(found, record)
        return
    if not path.is_file():
        raise RecipeError(f"there is no file or folder {path}", "name records, or folders that hold some")
    record = _read(path)
    if record is None or record.get("schema") not in SCHEMAS:
        stated = untrusted.text(record, "schema") or "none"
        raise RecipeError(f"{path} is no record that is known (schema: {stated})", f"give one of {', '.join(SCHEMAS)}")
    yield from _with_config(path, record)


def _with_config(path: Path, record: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """A record, and after one that lies in an output of quantize what that folder says besides."""
    folder = path.resolve().parent
    inside = path.name == RECORD and (folder / "config.json").is_file()
    yield folder.name if inside else path.stem, record
    if inside:
        config = _read(folder / "config.json") or {}
        weights = [file for file in folder.iterdir() if file.is_file() and file.name != RECORD]
        run = {"schema": SCHEMAS[1], "out": folder.name, "record": record, "config": config}
        yield folder.name, run | {"output_bytes": sum(file.stat().st_size for file in weights)}


def _files(folder: Path, out: Path) -> list[Path]:
    """JSON files below a folder in order of their names, less those of unfinished runs and of the report itself."""
    found = []
    for path in folder.rglob("*.json"):
        inner = path.relative_to(folder).parts[:-1]
        if not any(part.endswith(".run") or part.startswith(".") for part in inner) and path.parent != out:
            found.append(path)
        if len(found) > MOST:
            raise RecipeError(f"{folder} holds more than {MOST} JSON files", "name the records")
    return sorted(found)


def _read(path: Path) -> Mapping[str, Any] | None:
    """None where a file holds no JSON object."""
    if path.stat().st_size > LARGEST:
        raise CheckpointError(f"{path} is larger than any record", "name another file")
    try:
        found = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _compared(out: Path, made: Mapping[str, bytes]) -> tuple[tuple[str, ...], str | None]:
    """The names of the files that differ; charts are left out where another matplotlib drew them, which is said."""
    there = {name: (out / name).read_bytes() if (out / name).is_file() else None for name in made}
    note, differing = None, []
    before, now = _generator(there[HTML]), _generator(made[HTML])
    for name, content in made.items():
        old = there[name]
        if name in (HTML, PNG) and old is not None and before != now:
            note = f"made by {before}, this is {now}: charts are not compared"
            old, content = (b"", b"") if name == PNG else (_undrawn(old), _undrawn(content))
        if old != content:
            differing.append(name)
    return tuple(differing), note


def _generator(page: bytes | None) -> str:
    found = GENERATOR.search((page or b"").decode("utf-8", "replace"))
    return untrusted.plain(found[1]) if found else "something else"


def _undrawn(page: bytes) -> bytes:
    return DRAWN.sub("", page.decode("utf-8", "replace")).encode()

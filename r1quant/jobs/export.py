"""export: an artifact in, the same weights in other formats out. Nothing is rounded unless it is asked for, and said.

The result is written under another name beside its place and renamed when it is complete.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from r1quant import atomic, provenance
from r1quant.archs import Architecture, architecture_of, linears
from r1quant.artifact import Artifact, Form
from r1quant.errors import CheckpointError, RecipeError, ResumeError
from r1quant.formats.table import CODECS
from r1quant.jobs.artifacts import open_artifact
from r1quant.jobs.folder import RECORD, record_bytes
from r1quant.progress import Progress, Silent
from r1quant.registry import FORMATS
from r1quant.targets import ExportOptions, fitting, problem


@dataclass(frozen=True)
class Written:
    """One export. inexact: tensors that were rounded, with the reason."""

    path: Path
    format: str
    files: tuple[Path, ...]
    inexact: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        return sum(path.stat().st_size for path in self.files)

    def as_dict(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "format": self.format,
            "bytes": self.nbytes,
            "exact": not self.inexact,
            "inexact": dict(self.inexact),
            "files": [str(path) for path in self.files],
            **self.details,
        }


@dataclass(frozen=True)
class Exported:
    written: tuple[Written, ...]
    source: str
    seconds: float
    peak_rss_bytes: int

    def as_dict(self) -> dict[str, Any]:
        files = [written.as_dict() for written in self.written]
        return {"source": self.source, "files": files, "seconds": self.seconds, "peak_rss_bytes": self.peak_rss_bytes}


@dataclass(frozen=True)
class Job:
    """One artifact into one format."""

    artifact: Artifact
    arch: Architecture
    format: str
    place: Path
    options: ExportOptions
    progress: Progress

    @property
    def forms(self) -> dict[str, Form]:
        """The quantized linears. What is quantized beside them, an embedding in GGUF, is taken as floats."""
        known = frozenset(linears(self.artifact.config, self.arch))
        return {name: form for name, form in self.artifact.forms.items() if name in known}

    def require(self) -> None:
        """Raises what would stop the run, before anything is written."""
        place, source = self.place, self.artifact.source
        if place.exists() and not (place.is_dir() and not any(place.iterdir())):
            raise ResumeError(f"{place} exists already", "choose another --out, or delete it first")
        if not place.parent.is_dir() and not place.parent.parent.is_dir():
            raise RecipeError(f"the folder {place.parent} does not exist", "create it, or choose another --out")
        if self.format in CODECS and not self.forms:
            hint = f"quantize it first: r1quant quantize {source} --format {self.format}"
            raise RecipeError(f"{source} holds floats, and {self.format} holds quantized weights", hint)
        for name, form in self.forms.items():
            reason = problem(self.format, form, self.options)
            if reason:
                others = fitting(self.forms.values(), self.options)
                hint = f"export it --to {', '.join(others)}" if others else "quantize with other options"
                raise RecipeError(f"{self.format} cannot hold {name}: {reason}", hint)

    def run(self) -> Written:
        self.place.parent.mkdir(exist_ok=True)
        if self.format == "gguf":
            from r1quant.jobs.export_gguf import write_gguf

            if self.place.suffix == ".gguf":
                with _files(self.place) as folder:
                    inexact, details = write_gguf(self, folder, self.place.stem)
                    names = [path.name for path in folder.iterdir()]
                files = tuple(sorted(self.place.with_name(name) for name in names))
                return Written(self.place, self.format, files, inexact, details)
            with whole_folder(self.place) as folder:
                inexact, details = write_gguf(self, folder)
                self.record(folder, inexact, details)
        elif self.format == "onnx":
            from r1quant.formats.onnx.writer import data_bytes, write

            chosen = self.options.onnx
            self.progress.begin("writing onnx", data_bytes(self.artifact, self.arch, chosen))
            with whole_folder(self.place) as folder:
                done = write(self.artifact, self.arch, folder, chosen, self.progress.advance)
                inexact, details = dict(done.inexact), {"options": asdict(chosen)}
                self.record(folder, inexact, details)
        else:
            from r1quant.jobs.export_folder import write_folder

            with whole_folder(self.place) as folder:
                inexact, details = write_folder(self, folder), {}
                self.record(folder, inexact, details)
        files = tuple(sorted(path for path in self.place.iterdir() if path.is_file()))
        return Written(self.place, self.format, files, inexact, details)

    def record(self, folder: Path, inexact: Mapping[str, str], details: Mapping[str, Any]) -> None:
        """What the result says about itself. `source` is the float model, where that is known."""
        before = _record_of(self.artifact.folder) if self.artifact.forms else {}
        made = {"source": _located(self.artifact, before, self.place)} if before or not self.artifact.forms else {}
        record = {
            "schema": "r1quant.export/1",
            "format": self.format,
            "exported_from": {"name": name_of(self.artifact), "format": self.artifact.format},
            "exact": not inexact,
            "inexact": dict(inexact),
            **details,
            **made,
            "quantization": {key: before[key] for key in ("model", "recipe", "calibration") if key in before},
        }
        atomic.write_bytes(folder / RECORD, record_bytes(record))


def export(
    source: str | Path,
    to: Sequence[str],
    out: Path | None = None,
    options: ExportOptions | None = None,
    progress: Progress | None = None,
) -> Exported:
    """Writes an artifact in other formats.

    out   the folder to write (or NAME.gguf), where there is one format; for several, the folder that theirs go into;
          where it is left out they go into the current folder, each named after its format

    Raises RecipeError where a format cannot hold the weights, CheckpointError where they cannot be read, ResumeError
    where the place is taken; nothing is left there then.
    """
    begun, options, progress = time.monotonic(), options or ExportOptions(), progress or Silent()
    unknown = [name for name in to if name not in FORMATS]
    if unknown or not to:
        raise RecipeError(f"there is no format {', '.join(unknown) or 'named'}", f"choose from {', '.join(FORMATS)}")
    options.require(to)
    artifact = open_artifact(source)
    arch = architecture_of(artifact.config)
    jobs = [
        Job(artifact, arch, name, _place(artifact, name, out, len(to)), options, progress) for name in dict.fromkeys(to)
    ]
    for job in jobs:
        job.require()
    written = tuple(job.run() for job in jobs)
    return Exported(written, artifact.source, time.monotonic() - begun, provenance.peak_rss_bytes())


def name_of(artifact: Artifact) -> str:
    """A short name for files, without the format that the artifact has now."""
    path = Path(artifact.source.rstrip("/"))
    name = (path.resolve().name if path.name in ("", ".", "..") else path.name).removesuffix(".gguf")
    return name.replace(f"-{artifact.format}-", "-").removesuffix(f"-{artifact.format}")


def _place(artifact: Artifact, format: str, out: Path | None, count: int) -> Path:
    if out is not None and count == 1:
        return out.absolute()
    return (out or Path()).absolute() / f"{name_of(artifact)}-{format}"


@contextmanager
def _partial(place: Path) -> Iterator[Path]:
    """A folder beside `place` for what is not complete yet; it goes in any case."""
    partial = place.with_name(f".{place.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def whole_folder(place: Path) -> Iterator[Path]:
    """A folder that takes the name of `place` when the block ends well."""
    with _partial(place) as partial:
        yield partial
        atomic.rename_folder(partial, place)


@contextmanager
def _files(place: Path) -> Iterator[Path]:
    """A folder whose files move to where `place` is when the block ends well."""
    with _partial(place) as partial:
        yield partial
        for path in sorted(partial.iterdir(), reverse=True):
            path.replace(place.with_name(path.name))
        atomic.sync_folder(place.parent)


def _record_of(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / RECORD).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _located(artifact: Artifact, before: Mapping[str, Any], place: Path) -> str:
    """The float model as seen from the new place."""
    base, stated = (artifact.folder, before.get("source")) if artifact.forms else (Path(), artifact.source)
    if not isinstance(stated, str):
        raise CheckpointError(f"the {RECORD} of {artifact.source} is damaged", "delete that file")
    local = (base / stated).resolve()
    return os.path.relpath(local, place.resolve()) if local.exists() else stated

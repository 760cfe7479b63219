"""export: an artifact in, the same weights in other formats out. Nothing is rounded unless it is asked for, and said.

The result is written under another name beside its place and renamed when it is complete.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from r1quant.arch.tables import architecture_of
from r1quant.checkpoint.artifact import Artifact
from r1quant.core.json import JsonObject
from r1quant.errors import RecipeError
from r1quant.jobs.artifacts import open_artifact
from r1quant.jobs.checkpoint_writer import RECORD, own_record, record_bytes
from r1quant.jobs.export.gguf import write_gguf
from r1quant.jobs.export.safetensors import write_folder
from r1quant.jobs.export.task import ExportTask, TaskOutput, name_of
from r1quant.planning.targets import ExportOptions
from r1quant.progress import Progress, Silent
from r1quant.records.export import Export, ExportDetails, ExportedFrom, QuantizedBy
from r1quant.records.quantization import Quantization
from r1quant.records.writing import as_json
from r1quant.registry import FORMATS
from r1quant.storage import atomic, provenance


@dataclass(frozen=True)
class FormatExport:
    """One export. inexact: tensors that were rounded, with the reason."""

    path: Path
    format: str
    files: tuple[Path, ...]
    inexact: Mapping[str, str] = field(default_factory=dict)
    details: ExportDetails = field(default_factory=ExportDetails)

    @property
    def nbytes(self) -> int:
        return sum(path.stat().st_size for path in self.files)

    def as_dict(self) -> JsonObject:
        return {
            "path": str(self.path),
            "format": self.format,
            "bytes": self.nbytes,
            "exact": not self.inexact,
            "inexact": dict(self.inexact),
            "files": [str(path) for path in self.files],
            **as_json(self.details),
        }


@dataclass(frozen=True)
class Exported:
    written: tuple[FormatExport, ...]
    source: str
    seconds: float
    peak_rss_bytes: int

    def as_dict(self) -> JsonObject:
        files = [written.as_dict() for written in self.written]
        return {"source": self.source, "files": files, "seconds": self.seconds, "peak_rss_bytes": self.peak_rss_bytes}


def export(
    source: str | Path,
    to: Sequence[str],
    out: Path | None = None,
    options: ExportOptions | None = None,
    progress: Progress | None = None,
) -> Exported:
    """Writes an artifact in other formats.

    out   the folder to write (or NAME.gguf) if there is one format; for several, the folder that theirs go into;
          if it is left out they go into the current folder, each named after its format

    Raises RecipeError if a format cannot hold the weights, CheckpointError if they cannot be read, ResumeError if the
    place is taken; nothing is left there then.
    """
    begun, options, progress = time.monotonic(), options or ExportOptions(), progress or Silent()
    unknown = [name for name in to if name not in FORMATS]
    if unknown or not to:
        raise RecipeError(f"there is no format {', '.join(unknown) or 'named'}", f"choose from {', '.join(FORMATS)}")
    options.require(to)
    artifact = open_artifact(source)
    arch = architecture_of(artifact.config)
    tasks = [
        ExportTask(artifact, arch, name, _place(artifact, name, out, len(to)), options, progress)
        for name in dict.fromkeys(to)
    ]
    for task in tasks:
        task.require()
    written = tuple(_written(task) for task in tasks)
    return Exported(written, artifact.source, time.monotonic() - begun, provenance.peak_rss_bytes())


def _written(task: ExportTask) -> FormatExport:
    """Runs one task."""
    task.place.parent.mkdir(exist_ok=True)
    if task.format == "gguf" and task.place.suffix == ".gguf":
        with atomic.whole_files(task.place) as folder:
            written = write_gguf(task, folder, task.place.stem)
            names = [path.name for path in folder.iterdir()]
        files = tuple(sorted(task.place.with_name(name) for name in names))
        return FormatExport(task.place, task.format, files, written.inexact, written.details)
    write = {"gguf": write_gguf, "onnx": _write_onnx}.get(task.format, write_folder)
    with atomic.whole_folder(task.place) as folder:
        written = write(task, folder)
        atomic.write_bytes(folder / RECORD, record_bytes(_record(task, written).as_dict()))
    files = tuple(sorted(path for path in task.place.iterdir() if path.is_file()))
    return FormatExport(task.place, task.format, files, written.inexact, written.details)


def _write_onnx(task: ExportTask, folder: Path) -> TaskOutput:
    from r1quant.formats.onnx.writer import data_bytes, write

    chosen = task.options.onnx
    task.progress.begin("writing onnx", data_bytes(task.artifact, task.arch, chosen))
    done = write(task.artifact, task.arch, folder, chosen, task.progress.advance)
    return TaskOutput(dict(done.inexact), ExportDetails(options=asdict(chosen)))


def _record(task: ExportTask, written: TaskOutput) -> Export:
    """What the result says about itself."""
    artifact = task.artifact
    before = own_record(artifact.folder) if artifact.linear_specs else None
    return Export(
        format=task.format,
        exported_from=ExportedFrom(name_of(artifact), artifact.format),
        exact=not written.inexact,
        inexact=written.inexact,
        details=written.details,
        source=_float_source(artifact, before, task.place),
        quantization=_quantized_by(before),
    )


def _quantized_by(before: Quantization | Export | None) -> QuantizedBy:
    """What the record of the artifact says of how it was quantized; empty if there is none."""
    if isinstance(before, Quantization):
        return QuantizedBy(before.model, before.recipe, before.calibration)
    return (before.quantization if before else None) or QuantizedBy()


def _place(artifact: Artifact, format: str, out: Path | None, count: int) -> Path:
    if out is not None and count == 1:
        return out.absolute()
    return (out or Path()).absolute() / f"{name_of(artifact)}-{format}"


def _float_source(artifact: Artifact, before: Quantization | Export | None, place: Path) -> str | None:
    """The float model as seen from the new place; None if it is not known. before: the record of the artifact."""
    base, source = Path(), None if artifact.linear_specs else artifact.source
    if before is not None:
        base, source = artifact.folder, before.source
    if source is None:
        return None
    local = (base / source).resolve()
    return os.path.relpath(local, place.resolve()) if local.exists() else source

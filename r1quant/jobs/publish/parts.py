"""What lies in a folder that is to be published: which files, which models they are, how each is run."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from r1quant.arch.tables import layer_count
from r1quant.checkpoint.artifact import Artifact
from r1quant.checkpoint.resolve import open_model, pickle_refused
from r1quant.checkpoint.safetensors import PICKLES
from r1quant.errors import CheckpointError
from r1quant.formats import table
from r1quant.jobs.artifacts import ONNX_FILE, open_artifact
from r1quant.jobs.check.run import check
from r1quant.jobs.checkpoint_writer import own_record
from r1quant.jobs.identity import combined, identity_files, weight_files
from r1quant.jobs.serving import modelfile_of, runtimes_of
from r1quant.progress import Progress
from r1quant.publishing.evidence import PublishedModel, RecordFile
from r1quant.records.export import Export
from r1quant.records.quantization import Quantization
from r1quant.records.verification import Verification

FLOATS = "safetensors"
LATER = ("onnx", "gguf")  # after what transformers loads, which names the library of a card


@dataclass(frozen=True, eq=False)
class Opened:
    """A part, and the model that it is."""

    part: PublishedModel
    artifact: Artifact
    path: Path


def files_of(out: Path) -> dict[str, Path]:
    """Every file by its path with slashes, hidden and unfinished ones aside. Raises CheckpointError for a pickle."""
    if not out.is_dir():
        raise CheckpointError(f"there is no folder {out}", "name the folder that quantize or export has written")
    paths: dict[str, Path] = {}
    for folder, names, files in os.walk(out):
        names[:] = sorted(name for name in names if not name.startswith("."))
        for name in sorted(files):
            path = Path(folder) / name
            if name.startswith(".") or name.endswith(".partial"):
                continue
            if any(PurePosixPath(name.lower()).match(pattern) for pattern in PICKLES):
                raise pickle_refused(path)
            paths[path.relative_to(out).as_posix()] = path
    return paths


def parts_of(out: Path, hashes: Mapping[str, str]) -> list[Opened]:
    """The models in the folder and in the folders in it, safetensors first. hashes: of every file, by path.

    Raises CheckpointError if there is none, or one is damaged.
    """
    folders = [out, *sorted(path for path in out.iterdir() if path.is_dir() and not path.name.startswith("."))]
    parts = [opened for folder in folders for opened in _in_folder(out, folder, hashes)]
    if not parts:
        raise CheckpointError(f"{out} holds no quantized model", "make one first: r1quant quantize, or r1quant export")
    return sorted(parts, key=lambda opened: opened.part.format in LATER)


def with_equals(parts: list[Opened], records: list[RecordFile], progress: Progress) -> list[Opened]:
    """The parts, each that was not measured itself with the measured one whose weights it holds bit for bit."""
    measured = {file.identity for file in records if isinstance(file.record, Verification)}
    known = [opened for opened in parts if opened.part.identity in measured]
    return [opened if opened in known else _equal(opened, known, progress) for opened in parts]


def _in_folder(out: Path, folder: Path, hashes: Mapping[str, str]) -> Iterator[Opened]:
    record = own_record(folder)
    if (folder / ONNX_FILE).is_file():
        yield _opened(out, folder, open_artifact(folder), record, hashes)
    if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
        checkpoint = open_model(folder)
        layer_count(checkpoint.config, len(checkpoint.tensors))
        artifact = table.artifact(checkpoint)
        if artifact.format != FLOATS:
            yield _opened(out, folder, artifact, record, hashes)
    for path in sorted(folder.glob("*.gguf")):
        later = "-of-" in path.name and "-00001-of-" not in path.name
        if not later and not path.name.endswith(".imatrix.gguf"):
            yield _opened(out, path, open_artifact(path), record, hashes)


def _opened(
    out: Path, path: Path, artifact: Artifact, record: Quantization | Export | None, hashes: Mapping[str, str]
) -> Opened:
    """record: that of the folder; it counts if it is of this format."""
    files = identity_files(artifact)
    stated = record.format if isinstance(record, Export) else record.recipe.get("format") if record else None
    mine = isinstance(stated, str) and stated.removesuffix("-int") == artifact.format.removesuffix("-int")
    name = "" if path == out else path.relative_to(out).as_posix()
    part = PublishedModel(
        name,
        frozenset({path.resolve().name, *([path.parent.resolve().name] if path.is_file() else [])}),
        artifact.format,
        _grid(artifact, record if mine else None),
        combined(artifact, {file.name: hashes[file.relative_to(out).as_posix()] for file in files}),
        sum(file.stat().st_size for file in weight_files(artifact)),
        record if mine else None,
        runtimes=runtimes_of(artifact, path),
        modelfile=modelfile_of(path),
    )
    return Opened(part, artifact, path)


def _grid(artifact: Artifact, record: Quantization | Export | None) -> str:
    """Bits and group sizes in words; of a GGUF file its type if that is known."""
    if isinstance(record, Export) and record.details.gguf is not None:
        return record.details.gguf.type
    made = record.recipe.get("type") if isinstance(record, Quantization) else None
    if isinstance(made, str):
        return made
    types = Counter(form.type for form in artifact.linear_specs.values() if form.type is not None)
    if types:
        return ", ".join(type for type, _ in types.most_common())
    bits = sorted({form.bits for form in artifact.linear_specs.values()})
    groups = Counter(form.group_size for form in artifact.linear_specs.values()).most_common(1)
    if not bits:
        return ""
    widths = f"{bits[0]} bits" if len(bits) == 1 else f"{bits[0]} to {bits[-1]} bits"
    size = groups[0][0]
    grouped = "a scale for each row" if size == -1 else f"groups of {size}" if size else "groups as of act-order"
    return f"{widths}, {grouped}"


def _equal(opened: Opened, known: list[Opened], progress: Progress) -> Opened:
    if isinstance(opened.part.record, Export) and not opened.part.record.exact:
        return opened
    for other in known:
        progress.note(f"comparing the weights of {opened.path.name} with those of {other.path.name}")
        if check(opened.path, other.path, progress).identical:
            return replace(opened, part=replace(opened.part, same_as=other.part.name))
    return opened

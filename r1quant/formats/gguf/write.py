"""Writes an artifact as a GGUF file, or as several: headers first, then tensor after tensor, never a large one whole.

Quantized linears go from their integers into blocks and lose nothing. Float tensors keep their numbers unless a type
is asked for that cannot hold them; what was rounded is listed. Nothing in the file tells when it was made. All parts
get their names at the end, the first one last, so that a model that can be opened is complete.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from r1quant.arch.tables import Architecture
from r1quant.checkpoint.artifact import Artifact
from r1quant.checkpoint.gguf.config import ROPE_FREQS
from r1quant.formats.gguf import container, metadata, vocabulary
from r1quant.formats.gguf.container import Entry, Metadata
from r1quant.formats.gguf.content import pieces
from r1quant.formats.gguf.options import GgufOptions
from r1quant.formats.gguf.targets import KINDS, Target, file_type, parts, plan
from r1quant.storage.atomic import replacing

Item = TypeVar("Item")

PART_NAME = "{stem}-{number:05d}-of-{count:05d}.gguf"


@dataclass(frozen=True)
class GgufFile:
    """What was written.

    paths    the files; the first is the one to open
    rounded  why a tensor is not exactly what it was, by its name in the checkpoint; empty if all are
    types    the number of tensors by ggml type
    notes    what a user should know of the file, in lines; mostly none
    nbytes   of all files
    """

    paths: tuple[Path, ...]
    rounded: Mapping[str, str] = field(repr=False)
    types: Mapping[str, int]
    nbytes: int
    notes: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        return not self.rounded


def write(
    artifact: Artifact,
    arch: Architecture,
    path: Path,
    options: GgufOptions,
    step: Callable[[int], None] = lambda written: None,
) -> GgufFile:
    """Writes `path`, or parts beside it named PATH-00001-of-0000N.gguf if options.split_bytes asks for several.

    step is called with the number of bytes just written. Raises RecipeError and CheckpointError if the model has no
    place in GGUF (before anything is written) and NumericError if a number is too large for the type asked for.
    """
    targets = plan(artifact, arch, options)
    keys = _keys(artifact, arch, options, targets)
    table = metadata.rope_table(artifact.config)
    files = parts(targets, options.split_bytes)
    paths = [path] if len(files) == 1 else part_paths(path, len(files))
    rounded: dict[str, str] = {}
    nbytes = 0
    with ExitStack() as stack:
        for number, (part_path, part) in enumerate(zip(paths, files, strict=True)):
            extra = [] if table is None or number else [Entry(ROPE_FREQS, table.shape, KINDS["f32"], table.nbytes)]
            split = _split_keys(number, len(files), len(targets) + (table is not None))
            head = container.header({**(keys if number == 0 else {}), **split}, [*extra, *(t.entry for t in part)])
            file = stack.enter_context(replacing(part_path))
            file.write(head)
            nbytes += len(head)
            if extra and table is not None:
                raw = table.tobytes()
                file.write(raw + bytes(container.aligned(len(raw)) - len(raw)))
                nbytes += container.aligned(len(raw))
            nbytes += _tensors(artifact, part, file.write, rounded, step)
    types: dict[str, int] = {}
    for target in targets:
        types[target.type] = types.get(target.type, 0) + 1
    notes = vocabulary.notes(artifact.side_files, options.pre)
    return GgufFile(tuple(paths), rounded, types, nbytes, notes)


def size(artifact: Artifact, arch: Architecture, options: GgufOptions) -> int:
    """The bytes of the one file that `write` makes, known before a weight is read. Raises as `write` does."""
    targets = plan(artifact, arch, options)
    table = metadata.rope_table(artifact.config)
    extra = [] if table is None else [Entry(ROPE_FREQS, table.shape, KINDS["f32"], table.nbytes)]
    entries = [*extra, *(target.entry for target in targets)]
    head = container.header(_keys(artifact, arch, options, targets), entries)
    return len(head) + sum(entry.padded for entry in entries)


def part_paths(path: Path, count: int) -> list[Path]:
    """The names of the parts of a model, as llama.cpp looks for them."""
    stem = path.name.removesuffix(".gguf")
    return [path.with_name(PART_NAME.format(stem=stem, number=n + 1, count=count)) for n in range(count)]


def _keys(artifact: Artifact, arch: Architecture, options: GgufOptions, targets: list[Target]) -> Metadata:
    numbers = sum(int(np.prod(target.entry.shape)) for target in targets)
    name = options.name or artifact.folder.resolve().name
    keys = metadata.general(arch, artifact.side_files, name, numbers)
    keys |= metadata.model(artifact.config, arch, file_type(targets, options.mixture))
    return keys | vocabulary.keys(artifact.side_files, artifact.config, artifact.source, options.pre)


def _split_keys(number: int, count: int, tensors: int) -> Metadata:
    if count == 1:
        return {}
    return {
        "split.no": np.uint16(number),
        "split.count": np.uint16(count),
        "split.tensors.count": np.int32(tensors),
    }


def _tensors(
    artifact: Artifact,
    part: Sequence[Target],
    put: Callable[[Any], Any],
    rounded: dict[str, str],
    step: Callable[[int], None],
) -> int:
    """Writes the tensors of a file, all padded; returns the number of bytes."""
    stream = ((target, piece) for target in part for piece in pieces(artifact, target, rounded))
    missing = {target.name: target.entry.nbytes for target in part}
    with closing(ahead(stream)) as prepared:
        for target, piece in prepared:
            put(memoryview(piece).cast("B"))
            missing[target.name] -= piece.nbytes
            if missing[target.name] == 0:
                put(bytes(target.entry.padded - target.entry.nbytes))
            step(piece.nbytes)
    if any(missing.values()):
        raise ValueError(
            f"{next(name for name in missing if missing[name])} does not have the bytes that its header says"
        )
    return sum(target.entry.padded for target in part)


def ahead(items: Iterator[Item]) -> Generator[Item, None, None]:
    """The same items; the next one is made in a thread while the last one is used."""
    with ThreadPoolExecutor(1) as thread:
        upcoming = thread.submit(next, items, None)
        while (item := upcoming.result()) is not None:
            upcoming = thread.submit(next, items, None)
            yield item

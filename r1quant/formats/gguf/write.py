"""Writes an artifact as a GGUF file, or as several: headers first, then tensor after tensor, never a large one whole.

Quantized linears go from their integers into blocks and lose nothing. Float tensors keep their numbers unless a type
is asked for that cannot hold them; what was rounded is listed. Nothing in the file tells when it was made. All parts
get their names at the end, the first one last, so that a model that can be opened is complete.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from r1quant.archs import Architecture
from r1quant.artifact import Artifact, rows
from r1quant.atomic import replacing
from r1quant.errors import NumericError, RecipeError
from r1quant.floats import round_to, widen
from r1quant.formats.gguf import blocks, container, metadata, vocabulary
from r1quant.formats.gguf.container import Entry
from r1quant.formats.gguf.options import BLOCK_TYPES, GgufOptions
from r1quant.formats.gguf.targets import KINDS, Target, main_type, parts, plan
from r1quant.gguf_config import ROPE_FREQS

Bytes = npt.NDArray[np.uint8]
PART_NAME = "{stem}-{number:05d}-of-{count:05d}.gguf"


@dataclass(frozen=True)
class Written:
    """What was written.

    paths    the files; the first is the one to open
    rounded  why a tensor is not exactly what it was, by its name in the checkpoint; empty where all are
    types    how many tensors have each ggml type
    notes    what a user should know of the file, a line each; mostly none
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
) -> Written:
    """Writes `path`, or parts beside it named PATH-00001-of-0000N.gguf where options.split_bytes asks for several.

    step is called with the number of bytes just written. Raises RecipeError and CheckpointError where the model has no
    place in GGUF (before anything is written) and NumericError where a number is too large for the type asked for.
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
            for target in part:
                nbytes += _tensor(artifact, target, file.write, rounded, step)
    types: dict[str, int] = {}
    for target in targets:
        types[target.type] = types.get(target.type, 0) + 1
    notes = vocabulary.notes(artifact.carried, options.pre)
    return Written(tuple(paths), rounded, types, nbytes, notes)


def part_paths(path: Path, count: int) -> list[Path]:
    """The names of the parts of a model, as llama.cpp looks for them."""
    stem = path.name.removesuffix(".gguf")
    return [path.with_name(PART_NAME.format(stem=stem, number=n + 1, count=count)) for n in range(count)]


def _keys(artifact: Artifact, arch: Architecture, options: GgufOptions, targets: list[Target]) -> dict[str, Any]:
    numbers = sum(int(np.prod(target.entry.shape)) for target in targets)
    name = options.name or artifact.folder.resolve().name
    keys = metadata.general(arch, artifact.carried, name, numbers)
    keys |= metadata.model(artifact.config, arch, metadata.FILE_TYPES[main_type(targets)])
    return keys | vocabulary.keys(artifact.carried, artifact.config, artifact.source, options.pre)


def _split_keys(number: int, count: int, tensors: int) -> dict[str, Any]:
    if count == 1:
        return {}
    return {
        "split.no": np.uint16(number),
        "split.count": np.uint16(count),
        "split.tensors.count": np.int32(tensors),
    }


def _tensor(
    artifact: Artifact,
    target: Target,
    put: Callable[[Any], Any],
    rounded: dict[str, str],
    step: Callable[[int], None],
) -> int:
    """Writes one tensor and its padding; returns how many bytes that were."""
    done = 0
    for piece in _pieces(artifact, target, rounded):
        put(memoryview(piece).cast("B"))
        done += piece.nbytes
        step(piece.nbytes)
    if done != target.entry.nbytes:
        raise ValueError(f"{target.name}: {done} bytes instead of {target.entry.nbytes}")
    put(bytes(target.entry.padded - done))
    return target.entry.padded


def _pieces(artifact: Artifact, target: Target, rounded: dict[str, str]) -> Iterator[npt.NDArray[Any]]:
    """The bytes of a tensor in the order of the file."""
    if target.linear is not None:
        yield _linear(artifact, target, target.linear)
        return
    if target.stored.lower() == target.type and target.heads is None:
        yield from artifact.chunks(target.name)
        return
    unit = target.entry.shape[0] // target.heads if target.heads else 1
    for values in rows(artifact, target.name, unit):
        ordered = interleaved(values, len(values) // unit) if target.heads else values
        raw, exact = _rounded(ordered, target.type, target.name)
        if not exact:
            rounded[target.name] = f"rounded from {target.stored} to {target.type.upper()}"
        yield raw


def _linear(artifact: Artifact, target: Target, linear: str) -> Bytes:
    q = artifact.qlinear(linear)
    if target.type in BLOCK_TYPES:
        raw = blocks.encode(q, target.type)
        return interleaved(raw, target.heads) if target.heads else raw
    values = q.dequantize()
    raw, exact = _rounded(interleaved(values, target.heads) if target.heads else values, target.type, target.name)
    if not exact:
        raise RecipeError(f"{linear}: its weights are not exact in {target.type.upper()}", "take f32, or auto")
    return raw


def interleaved(array: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """The rows of q or k in llama.cpp's order, where the two that are rotated together are neighbours."""
    halves = array.reshape(heads, 2, len(array) // heads // 2, *array.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(array.shape)


def _rounded(values: npt.NDArray[np.float32], kind: str, name: str) -> tuple[Bytes, bool]:
    """The values in a type, and whether they are still the same. Raises NumericError where one becomes infinite."""
    if kind in BLOCK_TYPES:
        from gguf import GGMLQuantizationType
        from gguf.quants import quantize

        return np.asarray(quantize(values, GGMLQuantizationType[kind.upper()]), np.uint8), False
    raw = round_to(values, kind.upper())
    back = widen(raw, kind.upper())
    flat = values.reshape(-1)
    if bool((back == flat).all()):
        return raw, True
    if not bool(np.isfinite(back[np.isfinite(flat)]).all()):
        raise NumericError(f"{name} holds numbers that are too large for {kind.upper()}", "choose bf16 or f32")
    return raw, bool(((back == flat) | np.isnan(flat)).all())

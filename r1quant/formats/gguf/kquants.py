"""Requantization of a GGUF file to llama.cpp's own types, K-quants above all, by llama.cpp's own quantizer.

K-quants quantize their scales too, so no grid of another method fits them: the floats are rounded anew, and an
importance matrix says which inputs matter. llama.cpp may abort the process it runs in, so it works in a child, for
which this module is also the program. It does not know how the importance was measured.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from r1quant.checkpoint.gguf.header import GgufHeader, read_gguf_header
from r1quant.core.blocktypes import BLOCK_TYPES
from r1quant.core.json import JsonDict
from r1quant.errors import CheckpointError, MissingDependency, NumericError, OutOfSpaceError, R1QuantError, RecipeError
from r1quant.extras import missing, need
from r1quant.formats.gguf import imatrix
from r1quant.formats.gguf.options import FILE_TYPES, REQUANTIZED
from r1quant.formats.gguf.overrides import EMBEDDING, HEAD, overrides
from r1quant.storage import atomic

TENSOR_TYPES: Mapping[str, int] = {  # ggml_type
    "F32": 0, "F16": 1, "BF16": 30, **{name: of.number for name, of in BLOCK_TYPES.items()},
}  # fmt: skip
FLOATS = ("F32", "F16", "BF16")
SUPER_BLOCK = 256  # columns; if they do not fit a row, llama.cpp falls back to a type in blocks of 32
BUFFER_BYTES = 1 << 28  # of a tensor's rows, held at once
TENSOR_LINE = re.compile(r"^\[ *\d+/ *\d+\] (\S+)")
FALLBACK_LINE = re.compile(r"^warning: (\S+) +- ncols +\d+ not divisible by +\d+ \(required for type +(\w+)\)")
LOG_LINES = 12  # shown of a child that died


@dataclass(frozen=True)
class Requantized:
    """What llama.cpp wrote.

    tensors    the type of every tensor, by its GGUF name
    fallbacks  tensors whose columns do not fit the type of the mixture, with the type they got
    unweighted quantized tensors that the importance matrix says nothing of; empty if none was given
    """

    path: Path
    type: str
    bytes: int
    tensors: Mapping[str, str]
    fallbacks: Mapping[str, str]
    unweighted: tuple[str, ...]

    @property
    def types(self) -> dict[str, int]:
        """The number of tensors by type."""
        counts: dict[str, int] = {}
        for kind in self.tensors.values():
            counts[kind] = counts.get(kind, 0) + 1
        return dict(sorted(counts.items()))

    def as_dict(self) -> JsonDict:
        return asdict(self) | {"path": str(self.path), "types": self.types}


@dataclass(frozen=True)
class _Request:
    """What the child is told. A type of None leaves the choice to llama.cpp; patterns come with numbers of types."""

    source: str
    target: str
    file_type: int
    embedding: int | None
    head: int | None
    importance: str | None
    threads: int
    patterns: Sequence[tuple[str, int]] = ()


def requantize(
    source: Path,
    target: Path,
    type: str,
    importance: Mapping[str, npt.NDArray[np.float32]] | None = None,
    embedding: str | None = None,
    head: str | None = None,
    threads: int | None = None,
    step: Callable[[str], None] = lambda tensor: None,
    types: Mapping[str, str] | None = None,
) -> Requantized:
    """Rounds a GGUF file of floats to `type`, one of REQUANTIZED in any case; target appears whole or not at all.

    importance       the mean of x**2 over the inputs, float [K], by the GGUF name of the weight
    embedding, head  the type of these two tensors, out of TENSOR_TYPES; llama.cpp chooses if they are None.
                     If the head is tied to the embedding, the embedding's type counts for both
    step             called with the name of a tensor when llama.cpp begins it
    types            the type of single tensors, out of TENSOR_TYPES, by name, before what `type` says of them

    Raises RecipeError for an unknown type, importance that does not fit, and a source that is quantized already;
    MissingDependency without llama.cpp; NumericError if a weight is NaN or Inf; CheckpointError or OutOfSpaceError
    if llama.cpp fails.
    """
    type = type.upper()
    if not target.parent.is_dir():
        raise RecipeError(f"there is no folder {target.parent}", "make it first, or choose another --out")
    types = types or {}
    embedding, head = embedding or types.get(EMBEDDING), head or types.get(HEAD)
    choices: dict[str, str | None] = {**types, EMBEDDING: embedding, HEAD: head}
    header = _checked(source, type, importance or {}, choices)
    partial = target.with_name(f"{target.name}.partial")
    try:
        with tempfile.TemporaryDirectory(prefix="r1quant-") as folder:
            importance_path = Path(folder) / "importance.gguf"
            if importance:
                imatrix.write(importance_path, importance, dict.fromkeys(importance, 1), ["-"], 1, 1)
            request = _Request(
                source=str(source.absolute()),
                target=str(partial.absolute()),
                file_type=FILE_TYPES[type],
                embedding=None if embedding is None else TENSOR_TYPES[embedding],
                head=None if head is None else TENSOR_TYPES[head],
                importance=str(importance_path) if importance else None,
                threads=threads or 0,
                patterns=[(one.pattern, TENSOR_TYPES[one.type]) for one in overrides(types)],
            )
            log = _in_child(request, step)
        written = read_gguf_header(partial)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(target)
        atomic.sync_folder(target.parent)
    finally:
        partial.unlink(missing_ok=True)
    return _report(target, type, header, written, log, importance, choices)


def _checked(
    source: Path, type: str, importance: Mapping[str, npt.NDArray[Any]], choices: Mapping[str, str | None]
) -> GgufHeader:
    """The source's header. Raises what `requantize` says, as far as it can be known before."""
    if type not in REQUANTIZED:
        raise RecipeError(f"GGUF type {type!r} is not one of llama.cpp's mixtures", f"use {', '.join(REQUANTIZED)}")
    for name, kind in choices.items():
        if kind is not None and kind not in TENSOR_TYPES:
            raise RecipeError(f"{kind!r} is not a type for {name}", f"use {', '.join(TENSOR_TYPES)}")
    need("llamacpp")
    header = read_gguf_header(source)
    for tensor in header.tensors.values():
        if _kind(tensor.kind) not in FLOATS:
            raise RecipeError(
                f"{source.name} is quantized already: {tensor.name} is {_kind(tensor.kind)}",
                "requantize a GGUF file of floats, which loses nothing more than it must",
            )
        choice = choices.get(tensor.name)
        if choice is not None and tensor.shape[-1] % _block(choice):
            raise RecipeError(
                f"{tensor.name} has {tensor.shape[-1]} columns, and {choice} needs a multiple of {_block(choice)}",
                "use Q8_0 for it",
            )
    for name, values in importance.items():
        if name not in header.tensors:
            raise RecipeError(f"there is importance for {name}, but no such tensor", "measure it on the same model")
        columns = header.tensors[name].shape[-1]
        if values.shape != (columns,) or not bool((np.isfinite(values) & (values >= 0)).all()):
            raise RecipeError(
                f"the importance of {name} is not {columns} finite numbers from 0 up",
                "measure it on the same model",
            )
    return header


def _kind(number: int) -> str:
    from gguf.constants import GGMLQuantizationType

    return str(GGMLQuantizationType(number).name)


def _block(kind: str) -> int:
    """Columns that are stored together."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    return int(GGML_QUANT_SIZES[GGMLQuantizationType[kind]][0])


def _in_child(request: _Request, step: Callable[[str], None]) -> list[str]:
    """Runs llama.cpp to its end. Gives the lines of its log."""
    root = str(Path(__file__).resolve().parents[3])
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", __name__, json.dumps(asdict(request))],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )
    lines = []
    try:
        assert child.stderr is not None
        for line in child.stderr:
            lines.append(line.rstrip())
            if match := TENSOR_LINE.match(line):
                step(match[1])
        code = child.wait()
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
        if child.stderr is not None:
            child.stderr.close()
    if code:
        raise _failure(Path(request.source).name, code, [line for line in lines if line.strip()])
    return lines


def _failure(source: str, code: int, lines: list[str]) -> R1QuantError:
    """The error that a child's end stands for."""
    reason = next((line for line in lines if "failed to quantize: " in line), "").partition("failed to quantize: ")[2]
    if code == MissingDependency.exit_code:
        return missing("llamacpp", f"llama.cpp cannot be loaded: {lines[-1] if lines else ''}")
    if "iostream error" in reason or "file write" in reason:
        return OutOfSpaceError("llama.cpp cannot write its result", "free space on the disk, or name another folder")
    if "invalid data" in reason:
        return NumericError(f"{source}: {reason}", "the checkpoint is damaged; download it again")
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        reason = f"it died of {name}"
    log_tail = " | ".join(line.strip() for line in lines[-LOG_LINES:])[-600:]
    return CheckpointError(
        f"llama.cpp cannot requantize {source}: {reason or f'it ended with {code}'}",
        f"check the file and llama-cpp-python's version; its last words: {log_tail or 'none'}",
    )


def _report(
    target: Path,
    type: str,
    before: GgufHeader,
    after: GgufHeader,
    log: Iterable[str],
    importance: Mapping[str, npt.NDArray[np.float32]] | None,
    choices: Mapping[str, str | None],
) -> Requantized:
    tensors = {name: _kind(tensor.kind) for name, tensor in after.tensors.items()}
    warned = {match[1] for line in log if (match := FALLBACK_LINE.match(line))}
    if type.endswith(("_K", "_S", "_M", "_XS")):  # llama.cpp does not warn of these two
        odd = {name for name in choices.keys() & tensors.keys() if after.tensors[name].shape[-1] % SUPER_BLOCK}
        warned |= {name for name in odd if choices[name] is None and tensors[name] == "Q8_0"}
    rounded = [name for name, kind in tensors.items() if kind not in FLOATS and before.tensors[name].kind in (0, 1, 30)]
    return Requantized(
        target,
        type,
        target.stat().st_size,
        tensors,
        {name: tensors[name] for name in tensors if name in warned},
        tuple(name for name in rounded if name not in importance) if importance else (),
    )


def _child(request: _Request) -> int:
    """Runs in the child: llama.cpp's exit code. Its log goes to stderr as it is."""
    try:
        from llama_cpp import llama_cpp as api
    except (ImportError, OSError, RuntimeError) as error:
        print(str(error).splitlines()[0], file=sys.stderr)
        return MissingDependency.exit_code

    def say(level: int, text: bytes, _: object) -> None:
        os.write(2, text)

    callback = api.llama_log_callback(say)
    api.llama_log_set(callback, None)
    api.llama_backend_init()
    settings = api.llama_model_quantize_default_params()
    settings.ftype, settings.nthread, settings.max_buf_size = request.file_type, request.threads, BUFFER_BYTES
    if request.embedding is not None:
        settings.token_embedding_type = request.embedding
    if request.head is not None:
        settings.output_tensor_type = request.head
    vectors: list[tuple[bytes, npt.NDArray[np.float32]]] = []
    if request.importance is not None:
        vectors = [(name.encode(), values) for name, values in imatrix.read(Path(request.importance)).sums.items()]
        kind, address = api.llama_model_imatrix_data, ctypes.POINTER(ctypes.c_float)
        entries = [kind(name, values.ctypes.data_as(address), values.size) for name, values in vectors]
        entries.append(kind(None, None, 0))  # ends the list
        settings.imatrix = ctypes.cast((kind * len(entries))(*entries), ctypes.POINTER(kind))
    if request.patterns:
        override = api.llama_model_tensor_override
        table = [override(pattern.encode(), type) for pattern, type in request.patterns]
        table.append(override(None, 0))  # ends the list
        settings.tt_overrides = ctypes.cast((override * len(table))(*table), ctypes.POINTER(override))
    source, target = os.fsencode(request.source), os.fsencode(request.target)
    return int(api.llama_model_quantize(source, target, ctypes.byref(settings)))


if __name__ == "__main__":
    sys.exit(_child(_Request(**json.loads(sys.argv[1]))))

"""What a model is, as one hash over its weight files and config and how they are read: the same files give the same,
wherever they lie.

Hashes of files are remembered beside the cache, by path, size and time of change, so that a model is read once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from r1quant import atomic, provenance
from r1quant.artifact import Artifact
from r1quant.progress import Progress

WEIGHTS = (".safetensors", ".gguf", ".onnx", ".data")
PIECE = 1 << 22


def identity(model: Artifact, cache: Path, progress: Progress) -> str:
    """The sha256 over names and contents of the weight files, the config, and the format that they are read as."""
    hashes = {path.name: _remembered(path, cache, progress) for path in _files(model)}
    hashes["config"] = provenance.sha256(json.dumps(dict(model.config), sort_keys=True, default=str).encode())
    hashes["format"] = model.format  # a GGUF file may be read as it is, or as the float model it stands for
    return provenance.sha256(json.dumps(hashes, sort_keys=True).encode())


def _files(model: Artifact) -> Iterator[Path]:
    alone = Path(model.source)
    if alone.is_file() and alone.suffix == ".gguf":
        yield from sorted(alone.parent.glob(alone.name.replace("-00001-of-", "-?????-of-")))
    else:
        yield from sorted(path for path in model.folder.iterdir() if path.suffix in WEIGHTS)


def _remembered(path: Path, cache: Path, progress: Progress) -> str:
    stat = path.stat()
    stamp = [str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ino]
    note = cache / "hashes" / f"{provenance.sha256(json.dumps(stamp).encode())[:32]}.txt"
    with suppress(OSError):
        return note.read_text("ascii")
    digest = hashlib.sha256()
    progress.begin("hashing weights", stat.st_size)
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
            progress.advance(len(piece), path.name)
    note.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(note, digest.hexdigest().encode())
    return digest.hexdigest()

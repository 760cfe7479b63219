"""What a model is, as one hash over its weight files and config and how they are read: the same files give the same,
wherever they lie.

Hashes of files are remembered beside the cache, by path, size and time of change, so that a model is read once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from r1quant.checkpoint.artifact import Artifact, CheckpointArtifact
from r1quant.errors import CheckpointError
from r1quant.progress import Progress
from r1quant.storage import atomic, provenance
from r1quant.storage.cache import key

WEIGHTS = (".safetensors", ".gguf", ".onnx", ".data")
STATING = ("config.json", "quantize_config.json", "quant_config.json", "genai_config.json")
PART = re.compile(r"(.*)-\d{5}-of-\d{5}\.gguf", re.IGNORECASE)


def identity(model: Artifact, cache: Path, progress: Progress) -> str:
    """The sha256 over names and contents of the weight files, the config, and the format that they are read as."""
    return combined(model, {path.name: _remembered(path, cache, progress) for path in identity_files(model)})


def combined(model: Artifact, hashes: Mapping[str, str]) -> str:
    """The identity out of the hashes of `identity_files`, by name."""
    hashes = dict(hashes)
    hashes["config"] = provenance.sha256(json.dumps(dict(model.config), sort_keys=True, default=str).encode())
    hashes["format"] = model.format  # a GGUF file may be read as it is, or as the float model it stands for
    return provenance.sha256(json.dumps(hashes, sort_keys=True).encode())


def weight_files(model: Artifact) -> list[Path]:
    """The files that hold the tensors, each once; all parts of a model in several."""
    if isinstance(model, CheckpointArtifact):
        return list(model.checkpoint.files)
    return sorted(path for path in model.folder.iterdir() if path.suffix.lower() in WEIGHTS)


def identity_files(model: Artifact) -> list[Path]:
    """All weight files there are, and those that say how they are to be read.

    Raises CheckpointError if there are no weight files.
    """
    alone = Path(model.source)
    if alone.is_file() and alone.suffix.lower() == ".gguf":
        return sorted(path for path in alone.parent.iterdir() if _whole(path.name) == _whole(alone.name))
    files = sorted(path for path in model.folder.iterdir() if path.suffix.lower() in WEIGHTS or path.name in STATING)
    if not any(path.suffix.lower() in WEIGHTS for path in files):
        raise CheckpointError(f"{model.source} has no weight files", "download the model again")
    return files


def _whole(name: str) -> str:
    """The name of a model of which a file is a part, or of the file itself."""
    part = PART.fullmatch(name)
    return part[1] if part else name


def _remembered(path: Path, cache: Path, progress: Progress) -> str:
    stat = path.stat()
    stamp = [str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ino]
    note = cache / "hashes" / f"{key(stamp)}.txt"
    with suppress(OSError):
        return note.read_text("ascii")
    progress.begin("hashing weights", stat.st_size)
    digest = provenance.sha256_of_file(path, lambda count: progress.advance(count, path.name))
    note.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(note, digest.encode())
    return digest

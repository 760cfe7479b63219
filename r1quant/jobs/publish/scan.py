"""Looks for secrets in what is published: in whole small files, and in the metadata of weight files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from r1quant.checkpoint.gguf.header import read_gguf_header
from r1quant.errors import CheckpointError
from r1quant.jobs.publish.upload import Outgoing
from r1quant.publishing import secrets

MOST = 1 << 28  # bytes of one file


def scan(files: Iterable[Outgoing]) -> list[str]:
    """What was found, by file and line, never what it is."""
    reasons = []
    for file in files:
        content = file.source if isinstance(file.source, bytes) else _readable(file.source)
        reasons += [f"{file.path} seems to hold {kind} (line {line})" for kind, line in secrets.found(content)]
    return reasons


def _readable(path: Path) -> bytes:
    """All of a file but the numbers of a model."""
    limit = min(MOST, _header_bytes(path))
    with path.open("rb") as file:
        return file.read(limit)


def _header_bytes(path: Path) -> int:
    size, suffix = path.stat().st_size, path.suffix.lower()
    if suffix == ".safetensors":
        with path.open("rb") as file:
            return 8 + int.from_bytes(file.read(8), "little")
    if suffix == ".gguf":
        try:
            return min((tensor.offset for tensor in read_gguf_header(path).tensors.values()), default=size)
        except CheckpointError:
            return size
    return 0 if suffix == ".data" else size

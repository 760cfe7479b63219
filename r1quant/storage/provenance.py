"""Where a result came from: versions, threads and hashes. torch is asked only if it is loaded already."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path

VERSION = metadata.version("r1quant")
PIECE_BYTES = 1 << 22


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def sha256_of_file(path: Path, step: Callable[[int], None] = lambda count: None) -> str:
    """Of a file's content, read in pieces. step is called with the number of bytes just read."""
    digest = hashlib.sha256()
    for piece in pieces(path):
        digest.update(piece)
        step(len(piece))
    return digest.hexdigest()


def pieces(path: Path) -> Iterator[bytes]:
    """The content of a file, a few megabytes at a time."""
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece


def sha256_of_files(files: Mapping[str, bytes]) -> str:
    """One hash over names and contents, whatever their order."""
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name}\0{sha256(files[name])}\n".encode())
    return digest.hexdigest()


def version(package: str) -> str:
    """Of an installed package; empty if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Of the packages that are installed."""
    return {package: installed for package in packages if (installed := version(package))}


def environment() -> dict[str, str]:
    """What decides the bits of a result beside the inputs: versions, machine kind, threads."""
    facts = {
        "r1quant": VERSION,
        "python": platform.python_version(),
        "numpy": metadata.version("numpy"),
        "transformers": metadata.version("transformers"),
        "machine": platform.machine(),
    }
    if "torch" in sys.modules:
        import torch

        facts["torch"] = torch.__version__
        facts["cpu"] = torch.backends.cpu.get_cpu_capability()
        facts["threads"] = str(torch.get_num_threads())
        if torch.cuda.is_available():
            facts["gpu"] = torch.cuda.get_device_name(0)
    return facts


def processors() -> int:
    """How many this process may use, if the system says so."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def peak_rss_bytes() -> int:
    """Largest resident set of this process so far."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

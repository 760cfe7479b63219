"""This machine: its processor and memory, how fast they are, and its GPUs, as cards.

Makers do not say how fast the memory of a computer is, so that is measured, in a fraction of a second. It does not
know models.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import psutil

from r1quant.hardware.cards import Card, driven
from r1quant.storage.provenance import processors

LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
QUERY = ("--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
READ_BYTES, SIDE, REPEATS = 1 << 28, 1024, 3
PATIENCE = 10.0  # seconds for a driver to answer


@dataclass(frozen=True)
class Host:
    """processor: its name; cores: that this process may use; memory_bytes: that it may fill."""

    processor: str
    cores: int
    memory_bytes: int

    @property
    def name(self) -> str:
        return f"{self.processor}, {self.cores} core{'s' if self.cores > 1 else ''}"


@dataclass(frozen=True)
class Gpu:
    """As its driver calls it."""

    name: str
    memory_bytes: int


@dataclass(frozen=True)
class Machine:
    """notes: on GPUs of which no card is known."""

    cards: tuple[Card, ...]
    notes: tuple[str, ...]


def host() -> Host:
    return Host(_processor(), processors(), _memory())


def gpus() -> list[Gpu]:
    """Those that NVIDIA's driver lists; none if there is no driver."""
    listed = []
    for line in _output_of("nvidia-smi", *QUERY).splitlines():
        name, _, mebibytes = line.rpartition(",")
        if mebibytes.strip().isdigit():
            listed.append(Gpu(name.strip(), int(mebibytes) << 20))
    return listed


def machine(table: Iterable[Card]) -> Machine:
    """The GPUs, then the processor."""
    table, here = list(table), host()
    if here.processor.startswith("Apple"):
        chip = here.processor.removeprefix("Apple ").lower()
        like = [card for card in table if card.kind == "apple" and card.name.lower().rpartition(" ")[0] == chip]
        if like:
            title = f"{here.processor.removeprefix('Apple ')} {here.memory_bytes >> 30}GB"
            return Machine((replace(like[0], name=title, memory_bytes=here.memory_bytes),), ())
    cards, notes = [], []
    for gpu in dict.fromkeys(gpus()):
        known = driven(gpu.name, gpu.memory_bytes, table)
        if known is None:
            notes.append(f"{gpu.name} is in no table: describe it in a file and name that with --hardware")
        else:
            cards.append(replace(known, memory_bytes=gpu.memory_bytes))
    return Machine((*cards, processor(here)), tuple(notes))


@cache
def processor(here: Host) -> Card:
    """The processor with its memory, measured once."""
    flops = _flops()
    return Card(here.name, here.memory_bytes, _bandwidth(here.cores), flops, flops, "cpu", source="measured here")


def _bandwidth(threads: int) -> float:
    """Bytes a second that all cores together read."""
    pieces = [np.ones(READ_BYTES // threads // 8, np.int64) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:

        def once() -> float:
            begun = time.perf_counter()
            list(pool.map(np.sum, pieces))
            return time.perf_counter() - begun

        return sum(piece.nbytes for piece in pieces) / min(once() for _ in range(REPEATS))


def _flops() -> float:
    """Operations a second of a product of float32 matrices."""
    matrix = np.ones((SIDE, SIDE), np.float32)

    def once() -> float:
        begun = time.perf_counter()
        matrix @ matrix
        return time.perf_counter() - begun

    return 2.0 * SIDE**3 / min(once() for _ in range(REPEATS))


def _processor() -> str:
    if platform.system() == "Darwin":
        return _output_of("sysctl", "-n", "machdep.cpu.brand_string").strip() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model")))
    return next(named, platform.processor() or platform.machine())


def _memory() -> int:
    """Of the machine, or what a container is allowed of it."""
    total = int(psutil.virtual_memory().total)
    for path in map(Path, LIMITS):
        try:
            limit = path.read_text("ascii").strip()
        except OSError:
            continue
        total = min(total, int(limit)) if limit.isdigit() else total
    return total


def _output_of(*words: str) -> str:
    """What a program prints; nothing if there is no such program or it fails."""
    program = shutil.which(words[0])
    if program is None:
        return ""
    try:
        done = subprocess.run([program, *words[1:]], capture_output=True, text=True, timeout=PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""

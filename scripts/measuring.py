"""Runs a command as a process of its own and says what it cost, on which machine; and writes what was measured.

It does not know what the command does.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

R1QUANT = (sys.executable, "-c", "from r1quant.cli import main; main()")


@dataclass(frozen=True)
class Cost:
    """Of the whole process, imports and all, and of the processes that it waited for.

    Memory is the largest one's, and never less than what this process, which starts them, has held itself.
    """

    wall_seconds: float
    cpu_seconds: float
    peak_rss_bytes: int


def run(command: Sequence[str], log: Path, variables: Mapping[str, str] | None = None, cwd: Path | None = None) -> Cost:
    """Runs to the end, output and errors going to `log`. Raises click.ClickException where the command fails."""
    with log.open("wb") as file:
        begun = time.monotonic()
        process = subprocess.Popen(command, stdout=file, stderr=file, cwd=cwd, env=os.environ | dict(variables or {}))
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.monotonic() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        tail = log.read_text("utf-8", "replace")[-1500:]
        raise click.ClickException(f"ended with {process.returncode}: {' '.join(command)}\n{tail}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit)


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", "utf-8")


def machine() -> dict[str, Any]:
    """What a time depends on, beside the programs."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "threads_variable": os.environ.get("OMP_NUM_THREADS"),
        "load_before": os.getloadavg()[0],
    }

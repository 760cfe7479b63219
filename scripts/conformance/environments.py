"""Environments of other programs, each a plain virtual environment under .venvs, built when it is first needed."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import click

HERE = Path(__file__).resolve().parent
VENVS = HERE.parent.parent / ".venvs"
STAMP = "complete"
VARIABLES = {"PYTHONPATH": str(HERE.parent)}  # by which scripts in these environments find conformance and peers
NOTES = {"llamacpp": "llama.cpp is compiled where pip has no wheel of it: about 13 minutes on two cores"}


def interpreter(name: str) -> Path:
    """The python of the environment `name`, which is built anew where its lists of packages have changed.

    NAME.txt is installed first, then NAME-no-deps.txt without its dependencies: a program whose own demands cannot
    be met beside the torch of this project still runs with it.
    """
    folder = VENVS / name
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    lists = [HERE / f"{name}.txt", HERE / f"{name}-no-deps.txt"]
    lists = [path for path in lists if path.is_file()]
    wanted = hashlib.sha256(sys.version.encode() + b"".join(path.read_bytes() for path in lists)).hexdigest()
    stamp = folder / STAMP
    if stamp.is_file() and stamp.read_text("utf-8") == wanted:
        return python
    note = f" ({NOTES[name]})" if name in NOTES else ""
    click.echo(f"building the environment {folder.name}: {', '.join(path.name for path in lists)}{note}", err=True)
    shutil.rmtree(folder, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(folder)])
    for path in lists:
        alone = ["--no-deps"] if path.stem.endswith("-no-deps") else []
        _run([str(python), "-m", "pip", "install", "--quiet", *alone, "-r", str(path)])
    stamp.write_text(wanted, "utf-8")
    return python


def _run(command: list[str]) -> None:
    if subprocess.run(command, check=False, stdout=sys.stderr).returncode:
        raise click.ClickException(f"this failed: {' '.join(command)}")

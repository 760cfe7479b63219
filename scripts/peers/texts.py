"""The texts of a comparison, by what the command line calls them.

A text is `bundled` (the calibration or the held-out set of r1quant), `pydoc` (the documentation of Python's own
topics, which its standard library carries) or a file.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import click

BUNDLED, PYDOC = "bundled", "pydoc"


@dataclass(frozen=True)
class Text:
    """path: None for the bundled set. windows: how many are measured; None for as many as elsewhere said."""

    name: str
    path: Path | None
    windows: int | None = None

    def after(self, option: str) -> list[str]:
        """The flags that name it to r1quant; none for the bundled set, which is its default."""
        return [] if self.path is None else [option, str(self.path)]


def text(spec: str, work: Path) -> Text:
    """From NAME or NAME@WINDOWS. Raises click.UsageError where there is no such text."""
    name, _, count = spec.partition("@")
    if count and not count.isdecimal():
        raise click.UsageError(f"{spec!r}: after @ comes a number of windows")
    windows = int(count) if count else None
    if name == BUNDLED:
        return Text(name, None, windows)
    if name == PYDOC:
        return Text(name, _topics(work), windows)
    path = Path(name)
    if not path.is_file():
        raise click.UsageError(f"there is no text {name!r}: name a file, {BUNDLED} or {PYDOC}")
    return Text(path.stem, path.resolve(), windows)


def _topics(work: Path) -> Path:
    """All topics in the order of their names. They differ between versions of Python; the file's name tells."""
    topics: dict[str, str] = import_module("pydoc_data.topics").topics
    content = "\n\n".join(topics[name].strip() for name in sorted(topics)).encode()
    path = work / f"pydoc-{hashlib.sha256(content).hexdigest()[:8]}.txt"
    path.write_bytes(content)
    return path

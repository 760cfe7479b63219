"""The texts of a comparison, by what the command line calls them.

A text is `bundled` (the calibration or the held-out set of r1quant), `chains` (what of these tiny-r1 was made for),
`pydoc` (the documentation of Python's own topics, which its standard library carries) or a file.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import click

from r1quant.data.texts import CHAINS

BUNDLED, PYDOC = "bundled", "pydoc"
OURS = {BUNDLED: None, "chains": CHAINS}


@dataclass(frozen=True)
class Text:
    """spec: for r1quant, None for its default. windows: how many are measured; None for as many as elsewhere said."""

    name: str
    spec: str | None
    windows: int | None = None

    def after(self, option: str) -> list[str]:
        """The flags that name it to r1quant; none for the bundled set, which is its default."""
        return [] if self.spec is None else [option, self.spec]


def text(spec: str, work: Path) -> Text:
    """From NAME or NAME@WINDOWS. Raises click.UsageError where there is no such text."""
    name, _, count = spec.partition("@")
    if count and not count.isdecimal():
        raise click.UsageError(f"{spec!r}: after @ comes a number of windows")
    windows = int(count) if count else None
    if name in OURS:
        return Text(name, OURS[name], windows)
    if name == PYDOC:
        return Text(name, str(_topics(work)), windows)
    path = Path(name)
    if not path.is_file():
        raise click.UsageError(f"there is no text {name!r}: name a file, {', '.join(OURS)} or {PYDOC}")
    return Text(path.stem, str(path.resolve()), windows)


def _topics(work: Path) -> Path:
    """All topics in the order of their names. They differ between versions of Python; the file's name tells."""
    topics: dict[str, str] = import_module("pydoc_data.topics").topics
    content = "\n\n".join(topics[name].strip() for name in sorted(topics)).encode()
    path = work / f"pydoc-{hashlib.sha256(content).hexdigest()[:8]}.txt"
    path.write_bytes(content)
    return path

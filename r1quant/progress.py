"""What a long job tells whoever watches it. The command line draws it; the Python API may ignore it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """begin starts a task of `total` units; advance counts units of it; note is a line that stays."""

    def begin(self, task: str, total: float) -> None: ...
    def advance(self, amount: float = 1, text: str = "") -> None: ...
    def note(self, line: str) -> None: ...


class Silent:
    """Tells nobody."""

    def begin(self, task: str, total: float) -> None:
        return None

    def advance(self, amount: float = 1, text: str = "") -> None:
        return None

    def note(self, line: str) -> None:
        return None

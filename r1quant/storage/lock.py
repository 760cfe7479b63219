"""A lock on an open file: one process at a time has it, and it is free as soon as that process ends, however it ends.

It does not know what the file is for.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import IO, Any


class HeldElsewhere(Exception):
    """Another process has the lock; `pid` is None if its file does not tell."""

    def __init__(self, pid: int | None) -> None:
        super().__init__(pid)
        self.pid = pid

    @property
    def holder(self) -> str:
        """Who it is, for a message."""
        return "another process" if self.pid is None else f"another process ({self.pid})"


def take(file: IO[Any], waiting: Callable[[], None] | None = None) -> None:
    """Locks an open file until it is closed.

    waiting  is called if another process has the lock, whose end is then awaited

    Raises HeldElsewhere if another process has it and `waiting` is None.
    """
    from filelock import lock_descriptor

    if not lock_descriptor(file.fileno(), blocking=False):
        if waiting is None:
            raise HeldElsewhere(None)
        waiting()
        lock_descriptor(file.fileno())


def take_named(file: IO[str], waiting: Callable[[], None] | None = None) -> None:
    """As `take`, of a file that holds nothing but the id of the process that has the lock."""
    try:
        take(file, waiting)
    except HeldElsewhere:
        file.seek(0)
        written = file.read(20)
        raise HeldElsewhere(int(written) if written.isascii() and written.isdigit() else None) from None
    file.seek(0)
    file.truncate()
    file.write(str(os.getpid()))
    file.flush()

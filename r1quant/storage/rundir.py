"""A run directory holds what has happened: one finished part a layer, and the state to go on from.

A part that exists is complete. The directory belongs to one fingerprint: the hashes and options that decide the
result. Whatever differs on the next start is refused by name, never mixed. It does not know what parts contain.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO

from r1quant.errors import ResumeError
from r1quant.storage import atomic
from r1quant.storage.lock import HeldElsewhere, take_named

FINGERPRINT, LOCK = "fingerprint.json", "lock"
Fingerprint = Mapping[str, str]


def folder_for(out: Path) -> Path:
    """The run directory of an output, beside it: on the same disk, so that the result can be renamed into place."""
    return out.with_name(out.name + ".run")


class RunDir:
    """An open, locked run directory. Use as a context manager; the lock ends with it."""

    def __init__(self, folder: Path, waiting: Callable[[], None] | None = None) -> None:
        """Opens or creates it. Raises ResumeError where it is somebody else's, or another process is at work in it;
        where `waiting` is given it is called then, and the end of that work awaited."""
        self.folder, self._removed = folder, False
        lock = None
        while lock is None:
            folder.mkdir(exist_ok=True)
            with suppress(FileNotFoundError):  # another process has removed it since: begin again
                lock = _locked(folder, waiting)
        self._lock: IO[str] = lock

    def __enter__(self) -> RunDir:
        return self

    def __exit__(self, *_: object) -> None:
        """Gives the lock back. A directory that was never claimed holds nothing worth keeping, and goes."""
        if not self._removed and not (self.folder / FINGERPRINT).exists():
            self.remove()
        self._lock.close()

    def claim(self, fingerprint: Fingerprint) -> None:
        """Makes the directory belong to the fingerprint, or checks that it does.

        Raises ResumeError naming everything that changed since the run was begun.
        """
        path = self.folder / FINGERPRINT
        if not path.exists():
            atomic.write_bytes(path, json.dumps(fingerprint, indent=1).encode())
            return
        before = json.loads(path.read_text("utf-8"))
        changed = [key for key in {**before, **fingerprint} if before.get(key) != fingerprint.get(key)]
        if changed:
            details = ", ".join(f"{k} ({before.get(k)} -> {fingerprint.get(k)})" for k in changed)
            raise ResumeError(
                f"{self.folder} holds an unfinished run with a different {details}",
                f"run the command it was begun with, choose another --out, or delete {self.folder}",
            )

    def part(self, layer: int) -> Path:
        return self.folder / f"layer-{layer:05d}.safetensors"

    def boundary(self, layer: int) -> Path:
        """The activations that enter `layer`, written before the part of the layer before it."""
        return self.folder / f"boundary-{layer:05d}.safetensors"

    @property
    def output(self) -> Path:
        """Where the result is put together before it is renamed."""
        return self.folder / "output"

    def done(self, layers: int) -> int:
        """How many layers from the first are complete."""
        return next((i for i in range(layers) if not self.part(i).exists()), layers)

    def forget_boundaries(self, keep: int | None) -> None:
        """Deletes all boundary activations but those that enter layer `keep`."""
        for path in self.folder.glob("boundary-*"):
            if keep is None or path != self.boundary(keep):
                path.unlink()

    @property
    def size(self) -> int:
        """Bytes it holds on the disk, beside its lock."""
        return sum(p.stat().st_size for p in self.folder.rglob("*") if p.is_file() and p.name != LOCK)

    def remove(self) -> None:
        """Deletes the directory, once the result is in place: what says whose it is last, then the lock."""
        self._removed = True
        for path in self.folder.iterdir():
            if path.name not in (FINGERPRINT, LOCK):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for name in (FINGERPRINT, LOCK):
            (self.folder / name).unlink(missing_ok=True)
        with suppress(OSError):  # another process may have begun in it already
            self.folder.rmdir()


def _locked(folder: Path, waiting: Callable[[], None] | None) -> IO[str]:
    """The lock of a run directory, taken. Raises FileNotFoundError where it was removed at the same time."""
    path = folder / LOCK
    if not path.exists() and any(folder.iterdir()):
        raise ResumeError(
            f"{folder} exists and is not a run directory of r1quant", "move it away, or choose another --out"
        )
    lock = path.open("a+")
    try:
        take_named(lock, waiting)
        if not os.path.samestat(path.stat(), os.fstat(lock.fileno())):
            raise FileNotFoundError(path)
    except HeldElsewhere as held:
        lock.close()
        raise ResumeError(
            f"{held.holder} is working in {folder}", "wait for it to end, or choose another --out"
        ) from None
    except BaseException:
        lock.close()
        raise
    return lock

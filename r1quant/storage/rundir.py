"""A run directory holds what has happened: a file for each finished layer, and the state to go on from.

A file that exists is complete. The directory belongs to one fingerprint: the hashes and options that decide the
result. Whatever differs at the next start is refused by name, never mixed; what may differ nevertheless, if the user
says so, is noted. It does not know what the files contain.
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
from r1quant.storage.cache import Fingerprint
from r1quant.storage.lock import HeldElsewhere, take_named

FINGERPRINT, CHANGES, LOCK = "fingerprint.json", "changes.json", "lock"
MayChange = Callable[[str], bool]  # of the name of an entry of a fingerprint
Changes = Mapping[str, list[str | None]]  # by the name of an entry, what it was and what it is


def folder_for(out: Path) -> Path:
    """The run directory of an output, beside it: on the same disk, so that the result can be renamed into place."""
    return out.with_name(out.name + ".run")


class RunDir:
    """An open, locked run directory. Use as a context manager; the lock ends with it."""

    def __init__(self, folder: Path, waiting: Callable[[], None] | None = None) -> None:
        """Opens or creates it.

        waiting  is called if another process works in the directory, whose end is then awaited

        Raises ResumeError if the directory is something else, or another process works in it and `waiting` is None.
        """
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

    def claim(self, fingerprint: Fingerprint, may_change: MayChange | None = None, anyway: bool = False) -> None:
        """Makes the directory belong to the fingerprint, or checks that it does.

        may_change  which entries may differ, if `anyway` is true, from those that the run was begun with; those that do
                    are added to `changes`, and the directory belongs to the new fingerprint from then on

        Raises ResumeError that names all else that changed since the run was begun.
        """
        path = self.folder / FINGERPRINT
        if not path.exists():
            atomic.write_bytes(path, json.dumps(dict(fingerprint), indent=1).encode())
            return
        before = json.loads(path.read_text("utf-8"))
        changed = {
            name: [before.get(name), fingerprint.get(name)]
            for name in {**before, **fingerprint}
            if before.get(name) != fingerprint.get(name)
        }
        harmless = may_change is not None and all(map(may_change, changed))
        if changed and not (anyway and harmless):
            raise self._changed(changed, harmless)
        if changed:
            if (noted := self.changes)[-1:] != [changed]:  # a crash may have come between this and the next line
                atomic.write_bytes(self.folder / CHANGES, json.dumps([*noted, changed], indent=1).encode())
            atomic.write_bytes(path, json.dumps(dict(fingerprint), indent=1).encode())

    def _changed(self, changed: Changes, harmless: bool) -> ResumeError:
        details = ", ".join(f"{name} ({before} -> {after})" for name, (before, after) in changed.items())
        anyway = ", go on all the same with --resume-anyway" if harmless else ""
        return ResumeError(
            f"{self.folder} holds an unfinished run with a different {details}",
            f"run the command it was begun with{anyway}, choose another --out, or delete {self.folder}",
        )

    @property
    def changes(self) -> list[Changes]:
        """What changed between the starts of this run and was let pass, for each such start."""
        path = self.folder / CHANGES
        changes: list[Changes] = json.loads(path.read_text("utf-8")) if path.exists() else []
        return changes

    def layer_file(self, layer: int) -> Path:
        """The finished layer."""
        return self.folder / f"layer-{layer:05d}.safetensors"

    def layer_input(self, layer: int) -> Path:
        """The activations that enter a layer, written before the file of the layer before it."""
        return self.folder / f"input-{layer:05d}.safetensors"

    @property
    def output(self) -> Path:
        """Where the result is put together before it is renamed."""
        return self.folder / "output"

    def done(self, layers: int) -> int:
        """How many layers from the first are complete."""
        return next((i for i in range(layers) if not self.layer_file(i).exists()), layers)

    def forget_layer_inputs(self, keep: int | None) -> None:
        """Deletes all activations but those that enter layer `keep`."""
        for path in self.folder.glob("input-*"):
            if keep is None or path != self.layer_input(keep):
                path.unlink()

    @property
    def size(self) -> int:
        """Bytes it holds on the disk, beside its lock."""
        return sum(p.stat().st_size for p in self.folder.rglob("*") if p.is_file() and p.name != LOCK)

    def remove(self) -> None:
        """Deletes the directory once the result is in place: the fingerprint last, then the lock."""
        self._removed = True
        for path in self.folder.iterdir():
            if path.name not in (FINGERPRINT, LOCK):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for name in (FINGERPRINT, LOCK):
            (self.folder / name).unlink(missing_ok=True)
        with suppress(OSError):  # another process may have begun in it already
            self.folder.rmdir()


def _locked(folder: Path, waiting: Callable[[], None] | None) -> IO[str]:
    """The lock of a run directory, taken. Raises FileNotFoundError if it was removed at the same time."""
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

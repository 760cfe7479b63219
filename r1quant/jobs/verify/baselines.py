"""Keeps what a baseline predicts of a text on the disk, so that many artifacts are verified against one run of it.

One file for each (weights, tokens, precision, runtime, machine kind). A file that cannot be read is made again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from r1quant.storage import atomic
from r1quant.storage.cache import key

Arrays = Mapping[str, npt.NDArray[np.generic]]


def load_or_make(folder: Path, identity: Mapping[str, str], make: Callable[[], Arrays]) -> tuple[Arrays, bool]:
    """The arrays of an identity, and whether the folder had them; if not, they are made and stored there."""
    label = json.dumps(dict(identity), sort_keys=True).encode()
    path = folder / f"baseline-{key(dict(identity))}.npz"
    stored = _read(path, label)
    if stored is not None:
        return stored, True
    arrays = make()
    folder.mkdir(parents=True, exist_ok=True)
    own = path.with_name(f"{path.stem}-{os.getpid()}{path.suffix}")  # another process may be making the same
    with atomic.replacing(own) as file:
        np.savez(file, identity=np.frombuffer(_label(label, arrays), np.uint8), **arrays)  # type: ignore[arg-type]
    own.replace(path)
    return arrays, False


def _read(path: Path, label: bytes) -> Arrays | None:
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception:  # damage to a zip file or to the header of an array raises errors of many kinds
        return None
    identity = arrays.pop("identity", np.empty(0, np.uint8))
    return arrays if identity.tobytes() == _label(label, arrays) else None


def _label(label: bytes, arrays: Arrays) -> bytes:
    """The identity and the names of the arrays: the directory of a damaged zip file may have lost some."""
    return b" ".join([label, *(name.encode() for name in sorted(arrays))])

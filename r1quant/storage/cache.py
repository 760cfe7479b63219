"""The cache: what a later run need not compute again, and what may be deleted at any time.

An entry is named after a hash of all that decides its content. It does not know what entries hold.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from r1quant.storage.provenance import sha256

Fingerprint: TypeAlias = Mapping[str, str]  # all that decides a result, flat, so that each difference has a name


def cache_folder() -> Path:
    """$R1QUANT_CACHE, else r1quant in $XDG_CACHE_HOME, else ~/.cache/r1quant."""
    if own := os.environ.get("R1QUANT_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "r1quant"


def key(identity: Mapping[str, object] | Sequence[object]) -> str:
    """The name of an entry: 32 hexadecimal digits of the sha256 of what decides its content, as sorted JSON."""
    return sha256(json.dumps(identity, sort_keys=True).encode())[:32]


def entry(folder: Path, kind: str, fingerprint: Fingerprint, suffix: str = "") -> Path:
    """Where a result of some kind lies in the cache `folder`: a folder, or a file if there is a suffix."""
    return folder / f"{kind}-{key(fingerprint)}{suffix}"

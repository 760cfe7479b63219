"""The cache: where is kept what a later run need not find out again, and may be deleted at any time."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """$R1QUANT_CACHE, else r1quant in $XDG_CACHE_HOME, else ~/.cache/r1quant."""
    if own := os.environ.get("R1QUANT_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "r1quant"

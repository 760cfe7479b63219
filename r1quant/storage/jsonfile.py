"""Reads a JSON object out of a file that may be missing, damaged or somebody else's. It does not know what is in it."""

from __future__ import annotations

import json
from pathlib import Path

from r1quant.core.json import JsonObject

LARGEST = 1 << 26  # bytes of a file that is read


def read_object(path: Path, largest: int = LARGEST) -> JsonObject | None:
    """The object; None if the file is missing, larger than `largest` bytes, or holds anything else."""
    try:
        content = json.loads(path.read_bytes()) if path.stat().st_size <= largest else None
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None

"""The record of all rows that were ever run, one entry for each row, model, grid or type, and calibration text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from r1quant.storage import atomic

SCHEMA = "r1quant.peers/2"
KEY = ("model", "layers", "bits", "group_size", "type", "name")  # what an entry has of these
Entry = Mapping[str, Any]


def key(entry: Entry) -> tuple[Any, ...]:
    """Entries that answer the same question have the same one."""
    return (*(entry.get(name) for name in KEY), entry["calibration"]["sha256"])


def load(path: Path) -> list[Entry]:
    """Oldest first; none where there is no file yet."""
    entries: list[Entry] = json.loads(path.read_text("utf-8"))["rows"] if path.is_file() else []
    return entries


def find(path: Path, like: Entry) -> Entry | None:
    """The entry of the same key."""
    return next((entry for entry in load(path) if key(entry) == key(like)), None)


def merge(path: Path, entry: Entry, schema: str = SCHEMA) -> None:
    """Puts an entry in the place of that of the same key. One that failed replaces none that did not."""
    entries = load(path)
    old = next((index for index, other in enumerate(entries) if key(other) == key(entry)), None)
    if old is None:
        entries.append(entry)
    elif "error" not in entry or "error" in entries[old]:
        entries[old] = entry
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"schema": schema, "rows": entries}
    atomic.write_bytes(path, (json.dumps(content, indent=1) + "\n").encode())

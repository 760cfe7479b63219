"""Texts out of records, made fit to be shown. Their values were checked when they were read: see records/."""

from __future__ import annotations

LONGEST = 400  # characters of any text that a report shows


def plain(value: str) -> str:
    """Printable characters on one line, at most `LONGEST`; those that reverse the order of others are left out."""
    line = " ".join(value[: 4 * LONGEST].split())
    line = "".join(c for c in line if c.isprintable())
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"


def short(path: str) -> str:
    """The last part of a path of any system, so that no folder of a machine is shown; a Hub id stays whole."""
    line = plain(path).replace("\\", "/").rstrip("/")
    local = line.startswith(("/", ".", "~")) or line.count("/") != 1
    return line.rpartition("/")[2] if local else line

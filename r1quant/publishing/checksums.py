"""SHA256SUMS and provenance.json, which vouch for every file and for each other.

provenance.json holds the hash of every file but these two, and one of its own content with that hash left blank.
SHA256SUMS, in the form of `sha256sum`, holds them again and the hash of provenance.json, and follows from it byte for
byte. So a change anywhere is told by the name of the file it is in. A change of everything at once, hashes made anew,
is not: for that, compare `digest` with what the publisher tells elsewhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import PurePosixPath

from r1quant.core.json import JsonObject
from r1quant.storage.provenance import sha256

SUMS, STATEMENT = "SHA256SUMS", "provenance.json"
SCHEMA = "r1quant.provenance/1"
LINE = re.compile(r"([0-9a-f]{64})  (.+)")
# What the Hub and git put beside the files of a repository.
FOREIGN = re.compile(r"\.gitattributes|\.git/.*|\.cache/.*|\.huggingface/.*")


def statement(body: JsonObject) -> bytes:
    """provenance.json: the body, and the hash of itself. `files` of the body: path -> {"sha256", "bytes"}."""
    blank = {"schema": SCHEMA, "sha256": "", **body}
    return _text({**blank, "sha256": sha256(_text(blank))})


def sums(hashes: Mapping[str, str], statement: bytes) -> bytes:
    """SHA256SUMS. hashes: of every file but the two, by path."""
    listed = {**hashes, STATEMENT: sha256(statement)}
    return "".join(f"{listed[path]}  {path}\n" for path in sorted(listed)).encode()


def faults(present: Mapping[str, str], sums_text: bytes | None, statement_text: bytes | None) -> dict[str, str]:
    """What is wrong with a folder: missing, changed or extra, by path; empty if nothing is.

    present    sha256 of every file there, by path with slashes
    the texts  of SHA256SUMS and provenance.json; None if they are not there
    """
    stated = None if statement_text is None else hashes_of(statement_text)
    listed = {} if sums_text is None else _parsed(sums_text)
    wrong: dict[str, str] = {}
    if stated is None:
        wrong[STATEMENT] = "missing" if statement_text is None else "changed"
    if listed is None or sums_text is None:
        wrong[SUMS] = "missing" if sums_text is None else "changed"
    elif stated is not None and statement_text is not None and sums_text != sums(stated, statement_text):
        wrong[SUMS] = "changed"
    expected = stated if stated is not None else listed or {}
    for path in sorted(set(expected) - {SUMS, STATEMENT}):
        if present.get(path) != expected[path]:
            wrong[path] = "changed" if path in present else "missing"
    for path in sorted(set(present) - set(expected) - {SUMS, STATEMENT}):
        if not FOREIGN.fullmatch(path):
            wrong[path] = "extra"
    return wrong


def hashes_of(statement_text: bytes) -> dict[str, str] | None:
    """The hash of every file by path; None if one byte of provenance.json is not as it was written."""
    try:
        body = json.loads(statement_text)
        blank = {**body, "sha256": ""}
        whole = _text(body) == statement_text and sha256(_text(blank)) == body["sha256"]
        hashes = {str(path): str(entry["sha256"]) for path, entry in body["files"].items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return hashes if whole and all(map(_inside, hashes)) else None


def _text(body: JsonObject) -> bytes:
    return (json.dumps(body, indent=1, ensure_ascii=False) + "\n").encode()


def _parsed(text: bytes) -> dict[str, str] | None:
    """None if a line is not as `sums` writes it."""
    try:
        lines = [LINE.fullmatch(line) for line in text.decode("utf-8").splitlines()]
    except UnicodeDecodeError:
        return None
    hashes = {line[2]: line[1] for line in lines if line}
    return hashes if None not in lines and all(map(_inside, hashes)) else None


def _inside(path: str) -> bool:
    """Whether a path stays in its folder."""
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith("/") and ".." not in parts and "\\" not in path and "\0" not in path

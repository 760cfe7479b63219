"""Texts: what a user can name as one, and the documents in it: the bundled sets, text files, JSON lines, Hub datasets.

It does not know tokens, tokenizers or models.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from r1quant.errors import CalibrationError
from r1quant.extras import need

DEFAULT, HELD_OUT = "default.jsonl", "verify.jsonl"
CHAINS = "bundled:chain"  # the part of a bundled set that the embedded model was made for
SELF = "self"  # text that the model itself writes, which it has to be asked for first
HEADER = "r1quant_calibration"  # the key by which the first line of a file says how the others were written
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
FILE_SUFFIXES = {".txt", ".jsonl", ".json", ".md", ".csv", ".text", ".parquet", ".raw"}
PEEK, PEEK_LINES = 1 << 16, 5  # bytes and documents looked at by `check`
SHUFFLE_BUFFER = 1000
FORMS = 'each line is {"text": "..."} or {"messages": [{"role": "user", "content": "..."}, ...]}'


@dataclass(frozen=True)
class Source:
    """A spec, taken apart. `name` is a path or a dataset, `label` what the user is told."""

    kind: Literal["text", "jsonl", "hub"]
    name: str
    label: str
    bundled: bool = False
    config: str | None = None
    split: str = "train"
    column: str | None = None
    only: str | None = None  # documents of this kind alone


@dataclass(frozen=True)
class WrittenText:
    """A text, and the tokens that a model wrote it in, which encoding it again may not give."""

    text: str
    tokens: tuple[int, ...]


Document = str | WrittenText | list[dict[str, Any]]


def bundled(name: str) -> Path:
    """A file of the bundled sets: in the installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "calib", package.parent / "calib"):
        if (folder / name).is_file():
            return folder / name
    raise CalibrationError(f"the bundled file calib/{name} is missing", "install r1quant again, or give a text file")


def named(spec: str | None, default: str) -> Source:
    """Takes a spec apart. Raises CalibrationError if it names nothing that can be read."""
    if spec is None:
        return Source("jsonl", str(bundled(default)), f"the bundled calib/{default}", bundled=True)
    if spec == CHAINS:
        return Source("jsonl", str(bundled(default)), f"the chains of calib/{default}", bundled=True, only="chain")
    if spec == SELF:
        raise CalibrationError(
            "only quantize has the model write its own text",
            "write it first: r1quant calib generate MODEL -o FILE.jsonl",
        )
    if spec.startswith("hub:"):
        return _hub_source(spec)
    path = Path(spec)
    if path.is_dir():
        raise CalibrationError(f"{spec} is a folder", f"name a file, or a folder that holds a dataset as hub:{spec}")
    if path.suffix.lower() == ".json":
        raise CalibrationError(f"{spec} is one JSON value", f"write it as .jsonl, one document a line: {FORMS}")
    if path.is_file():
        return Source("jsonl" if path.suffix.lower() == ".jsonl" else "text", spec, path.name)
    if HUB_NAME.fullmatch(spec) and path.suffix.lower() not in FILE_SUFFIXES:
        return _hub_source(f"hub:{spec}")
    raise CalibrationError(f"{spec} does not exist", "name a text file, a .jsonl file or hub:OWNER/DATASET")


def check(spec: str | None) -> None:
    """What can be said without a tokenizer: the file is there and begins as it should, the package is installed."""
    if spec == SELF:
        return
    source = named(spec, DEFAULT)
    if source.kind == "hub":
        need("datasets")
        return
    found = 0
    if source.kind == "text":
        found = len(read_text(Path(source.name), PEEK).strip())
    else:
        for number, line in enumerate(_lines(Path(source.name)), 1):
            found += _parse_line(line, f"{source.name}:{number}", source.only) is not None
            if found == PEEK_LINES:
                break
    if not found:
        raise CalibrationError(f"{source.name} is empty", "give a file with text in it")


def header(path: Path) -> dict[str, Any] | None:
    """What the first line of a file says of how the others were written; None if it says nothing."""
    try:
        found = json.loads(next(_lines(path), b""))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and HEADER in found else None


def read_text(path: Path, limit: int) -> str:
    """The first `limit` bytes as text, a character cut in two at the end left out."""
    try:
        with path.open("rb") as file:
            raw, more = file.read(limit), bool(file.read(1))
    except OSError as error:
        raise CalibrationError(f"{path} cannot be read: {error.strerror}", "check the path") from None
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(raw, final=not more).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise CalibrationError(
            f"{path} is not UTF-8: byte {error.start} is {raw[error.start]:#04x}", "give a text file in UTF-8"
        ) from None


def read_jsonl(path: Path, only: str | None = None) -> list[Document]:
    parsed = (_parse_line(line, f"{path}:{number}", only) for number, line in enumerate(_lines(path), 1))
    return [document for document in parsed if document is not None]


def dataset(source: Source, seed: int) -> Iterator[Document]:
    """The rows of a dataset, streamed in an order that the seed decides."""
    need("datasets")
    import datasets

    try:
        rows = datasets.load_dataset(source.name, source.config, split=source.split, streaming=True)
        rows = iter(rows.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER))
        row = next(rows, None)
    except Exception as error:  # the package raises errors of many libraries
        raise _hub_failed(source, error) from None
    number = 0
    while row is not None:
        number += 1
        column = source.column or next((c for c in ("messages", "text") if c in row), None)
        if column is None or column not in row:
            raise CalibrationError(
                f"{source.label} has no column {column or 'messages or text'}",
                f"name one of its columns as hub:NAME:SPLIT:COLUMN: {', '.join(map(str, row))}",
            )
        yield _document(row[column], f"{source.label}, row {number}, column {column}")
        try:
            row = next(rows, None)
        except Exception as error:
            raise _hub_failed(source, error) from None


def _hub_source(spec: str) -> Source:
    name, *rest = spec.removeprefix("hub:").split(":")
    name, _, config = name.partition("@")
    if not name or len(rest) > 2:
        raise CalibrationError(f"{spec!r} does not name a dataset", "write hub:NAME[@CONFIG][:SPLIT[:COLUMN]]")
    split, column = [*rest, "", ""][:2]
    return Source("hub", name, spec, False, config or None, split or "train", column or None)


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from file
    except OSError as error:
        raise CalibrationError(f"{path} cannot be read: {error.strerror}", "check the path") from None


def _parse_line(line: bytes, where: str, only: str | None) -> Document | None:
    """The document of one line; None for an empty line, a header, or one of another kind than `only`."""
    try:
        text = line.decode("utf-8").strip().removeprefix("\ufeff")
        entry = json.loads(text) if text else None
    except UnicodeDecodeError:
        raise CalibrationError(f"{where} is not UTF-8", "give a file in UTF-8") from None
    except (ValueError, RecursionError):
        raise CalibrationError(f"{where} is not valid JSON", FORMS) from None
    if not text:
        return None
    if isinstance(entry, dict):
        if HEADER in entry or (only is not None and entry.get("kind") != only):
            return None
        written, tokens = entry.get("text"), entry.get("tokens")
        if isinstance(written, str) and isinstance(tokens, list) and all(map(_is_token, tokens)):
            return WrittenText(written, tuple(tokens))
        for key in ("messages", "text"):
            if key in entry:
                return _document(entry[key], where)
    raise CalibrationError(f"{where} has neither text nor messages", FORMS)


def _document(value: Any, where: str) -> Document:
    if isinstance(value, str):
        return value
    if (
        isinstance(value, list)
        and value
        and all(isinstance(m, dict) and isinstance(m.get("role"), str) for m in value)
        and all(isinstance(m.get("content"), str | None) for m in value)
    ):
        return value
    raise CalibrationError(f"{where} holds neither a text nor a list of messages", FORMS)


def _is_token(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 31


def _hub_failed(source: Source, error: Exception) -> CalibrationError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
    return CalibrationError(
        f"the dataset {source.label} cannot be read: {reason}",
        "check the name, the split and the network, or give a text file",
    )

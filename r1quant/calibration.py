"""Text to token windows: the bundled sets, text files, JSON lines and Hub datasets; packed, counted and hashed.

A text file is one document, its windows in file order, so that others can be given the very same tokens. Other
sources are documents with an eos token between them, shuffled by the seed where there are more than needed.
Nothing is ever padded; the ragged tail is dropped. It does not know models, and it needs no torch.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from r1quant.errors import CalibrationError, CheckpointError
from r1quant.extras import need
from r1quant.tokenizer import Tokenizer, trace_of

DEFAULT, HELD_OUT = "default.jsonl", "verify.jsonl"
CHAINS = "bundled:chain"  # the part of a bundled set that the embedded model was made for
SELF = "self"  # text that the model itself writes, which it has to be asked for first
HEADER = "r1quant_calibration"  # the key by which the first line of a file says how the others were written
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
FILE_SUFFIXES = {".txt", ".jsonl", ".json", ".md", ".csv", ".text", ".parquet", ".raw"}
BYTES_PER_TOKEN = (8, 128)  # more than usual, more than ever: how much of a text file is read at first, and at most
MARGIN = 256  # tokens this far from a cut in the text do not depend on it
PEEK, PEEK_LINES = 1 << 16, 5  # bytes and documents looked at by `check`
SHUFFLE_BUFFER = 1000
FORMS = 'each line is {"text": "..."} or {"messages": [{"role": "user", "content": "..."}, ...]}'


@dataclass(frozen=True, eq=False)
class Calibration:
    """Packed tokens.

    tokens     int64 [windows, seq_len]
    sha256     over the shape and the tokens as little-endian int64
    source     what the user is told about where they come from
    documents  how many documents have tokens in the windows
    requested  how many windows were asked for; there may be fewer
    """

    tokens: npt.NDArray[np.int64]
    sha256: str
    source: str
    documents: int
    requested: int

    @property
    def windows(self) -> int:
        return int(self.tokens.shape[0])

    def followed_by(self, tokens: npt.NDArray[np.int64], source: str) -> Calibration:
        """With more windows [n, seq_len] after its own, each a document."""
        both = np.concatenate([self.tokens, tokens])
        return Calibration(both, _digest(both), source, self.documents + len(tokens), self.requested + len(tokens))


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


@dataclass(frozen=True, eq=False)
class Packed:
    """Rows int64 [n, seq_len], how many documents reach into them, and how many tokens were seen for that."""

    tokens: npt.NDArray[np.int64]
    documents: int
    seen: int


@dataclass(frozen=True)
class Written:
    """A text, and the tokens that a model wrote it in, which encoding it again may not give."""

    text: str
    tokens: tuple[int, ...]


Document = str | Written | list[dict[str, Any]]


def bundled(name: str) -> Path:
    """A file of the bundled sets: in the installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parent
    for folder in (package / "calib", package.parent / "calib"):
        if (folder / name).is_file():
            return folder / name
    raise CalibrationError(f"the bundled file calib/{name} is missing", "install r1quant again, or give a text file")


def load(
    spec: str | None,
    tokenizer: Tokenizer,
    samples: int,
    seq_len: int,
    seed: int,
    vocabulary: int | None = None,
) -> Calibration:
    """The calibration windows. Raises CalibrationError where the text cannot be used.

    spec        None for the bundled set; a text file; a .jsonl file; `owner/name` or
                `hub:NAME[@CONFIG][:SPLIT[:COLUMN]]` for a Hub dataset
    vocabulary  how many tokens the model knows; CheckpointError where the tokenizer makes others
    """
    return _load(_source(spec, DEFAULT), tokenizer, samples, seq_len, seed, vocabulary)


def evaluation_text(
    spec: str | None,
    tokenizer: Tokenizer,
    windows: int,
    seq_len: int,
    seed: int = 0,
    vocabulary: int | None = None,
) -> Calibration:
    """As `load`, for measuring: the bundled text shares no document with the bundled calibration set."""
    return _load(_source(spec, HELD_OUT), tokenizer, windows, seq_len, seed, vocabulary)


def of_documents(
    documents: Iterable[Sequence[int]],
    label: str,
    tokenizer: Tokenizer,
    samples: int,
    seq_len: int,
    vocabulary: int | None = None,
) -> Calibration:
    """As `load`, of documents that are tokens already, in their order."""
    return _calibration(pack(documents, samples, seq_len, tokenizer.eos_id), label, tokenizer, samples, vocabulary)


def documents(spec: str | None, tokenizer: Tokenizer) -> Iterator[list[int]]:
    """The tokens of each document of a file, or of the bundled set. Raises CalibrationError, for a dataset too."""
    source = _source(spec, DEFAULT)
    if source.kind == "hub":
        raise CalibrationError(f"{source.label} is read as it is needed, not counted", "name a file")
    if source.kind == "text":
        yield tokenizer.encode(_read_text(Path(source.name), Path(source.name).stat().st_size))
        return
    for document in _read_jsonl(Path(source.name), source.only):
        yield _encoded(document, tokenizer, source)


def header(path: Path) -> dict[str, Any] | None:
    """What the first line of a file says of how the others were written; None where it says nothing."""
    try:
        found = json.loads(next(_lines(path), b""))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and HEADER in found else None


def check(spec: str | None) -> None:
    """What can be said without a tokenizer: the file is there and begins as it should, the package is installed."""
    if spec == SELF:
        return
    source = _source(spec, DEFAULT)
    if source.kind == "hub":
        need("datasets")
        return
    found = 0
    if source.kind == "text":
        found = len(_read_text(Path(source.name), PEEK).strip())
    else:
        for number, line in enumerate(_lines(Path(source.name)), 1):
            found += _parse_line(line, f"{source.name}:{number}", source.only) is not None
            if found == PEEK_LINES:
                break
    if not found:
        raise CalibrationError(f"{source.name} is empty", "give a file with text in it")


def pack(documents: Iterable[Sequence[int]], windows: int, seq_len: int, eos_id: int | None) -> Packed:
    """The documents one after the other, eos between them, cut into at most `windows` rows.

    A document that already ends in eos gets no second one. Reading stops as soon as the rows are full.
    """
    stream: list[int] = []
    starts: list[int] = []
    for document in filter(None, documents):
        if stream and eos_id is not None and stream[-1] != eos_id:
            stream.append(eos_id)
        starts.append(len(stream))
        stream += document
        if len(stream) >= windows * seq_len:
            break
    count = min(windows, len(stream) // seq_len)
    tokens = np.array(stream[: count * seq_len], np.int64).reshape(count, seq_len)
    return Packed(tokens, sum(start < tokens.size for start in starts), len(stream))


def _load(
    source: Source, tokenizer: Tokenizer, samples: int, seq_len: int, seed: int, vocabulary: int | None
) -> Calibration:
    if samples < 1 or seq_len < 1:
        raise CalibrationError(f"{samples} windows of {seq_len} tokens cannot be made", "give numbers from 1 up")

    def packed(documents: Iterable[Document]) -> Packed:
        encoded = (_encoded(document, tokenizer, source) for document in documents)
        return pack(encoded, samples, seq_len, tokenizer.eos_id)

    need = samples * seq_len
    if source.kind == "text":
        result = pack([_file_tokens(Path(source.name), tokenizer, need)], samples, seq_len, None)
    elif source.kind == "hub":
        result = packed(_hub(source, seed))
    else:
        every = _read_jsonl(Path(source.name), source.only)
        result = packed(random.Random(seed).sample(every, len(every)))
        if result.seen < need:
            result = packed(every)
    return _calibration(result, source.label, tokenizer, samples, vocabulary)


def _calibration(packed: Packed, label: str, tokenizer: Tokenizer, samples: int, vocabulary: int | None) -> Calibration:
    if not packed.tokens.size:
        raise _too_short(label, packed.seen, packed.tokens.shape[1])
    _check_vocabulary(packed.tokens, tokenizer, vocabulary)
    return Calibration(packed.tokens, _digest(packed.tokens), label, packed.documents, samples)


def _file_tokens(path: Path, tokenizer: Tokenizer, need: int) -> list[int]:
    """At least the first `need` tokens of a text file, or all there are, without encoding much more than that."""
    ids: list[int] = []
    for factor in BYTES_PER_TOKEN:
        ids = tokenizer.encode(_read_text(path, factor * (need + MARGIN)))
        if len(ids) >= need + MARGIN:
            break
    return ids


def _too_short(label: str, seen: int, seq_len: int) -> CalibrationError:
    if not seen:
        return CalibrationError(f"{label} holds no text", "give a file with text in it")
    return CalibrationError(
        f"{label} gives {seen} tokens, fewer than one window of {seq_len}",
        f"give more text, or a --seq-len of at most {seen}",
    )


def _check_vocabulary(tokens: npt.NDArray[np.int64], tokenizer: Tokenizer, vocabulary: int | None) -> None:
    if vocabulary is not None and int(tokens.max()) >= vocabulary:
        raise CheckpointError(
            f"the tokenizer of {tokenizer.source} makes token {int(tokens.max())}, but the model has {vocabulary}",
            "the tokenizer belongs to another model; download its files again",
        )


def _digest(tokens: npt.NDArray[np.int64]) -> str:
    digest = hashlib.sha256(f"{tokens.shape[0]}x{tokens.shape[1]}\n".encode())
    digest.update(np.ascontiguousarray(tokens, "<i8").tobytes())
    return digest.hexdigest()


def _source(spec: str | None, default: str) -> Source:
    """Takes a spec apart. Raises CalibrationError where it names nothing that can be read."""
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


def _hub_source(spec: str) -> Source:
    name, *rest = spec.removeprefix("hub:").split(":")
    name, _, config = name.partition("@")
    if not name or len(rest) > 2:
        raise CalibrationError(f"{spec!r} does not name a dataset", "write hub:NAME[@CONFIG][:SPLIT[:COLUMN]]")
    split, column = [*rest, "", ""][:2]
    return Source("hub", name, spec, False, config or None, split or "train", column or None)


def _read_text(path: Path, limit: int) -> str:
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


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from file
    except OSError as error:
        raise CalibrationError(f"{path} cannot be read: {error.strerror}", "check the path") from None


def _read_jsonl(path: Path, only: str | None = None) -> list[Document]:
    parsed = (_parse_line(line, f"{path}:{number}", only) for number, line in enumerate(_lines(path), 1))
    return [document for document in parsed if document is not None]


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
            return Written(written, tuple(tokens))
        for key in ("messages", "text"):
            if key in entry:
                return _document(entry[key], where)
    raise CalibrationError(f"{where} has neither text nor messages", FORMS)


def _is_token(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 31


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


def _encoded(document: Document, tokenizer: Tokenizer, source: Source) -> list[int]:
    """The tokens of a document: those it was written in, where they mean the same to this tokenizer."""
    if isinstance(document, Written):
        same = tokenizer.decode(document.tokens) == document.text
        return list(document.tokens) if same else tokenizer.encode(document.text)
    return tokenizer.encode(_text(document, tokenizer, source))


def _text(document: str | list[dict[str, Any]], tokenizer: Tokenizer, source: Source) -> str:
    """The text to encode. The bundled sets also serve models without a chat template, as plain text."""
    if isinstance(document, str):
        return document
    if source.bundled and not tokenizer.has_chat_template:
        return "\n\n".join(trace_of(message) for message in document)
    return tokenizer.render_trace(document)


def _hub(source: Source, seed: int) -> Iterator[Document]:
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


def _hub_failed(source: Source, error: Exception) -> CalibrationError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
    return CalibrationError(
        f"the dataset {source.label} cannot be read: {reason}",
        "check the name, the split and the network, or give a text file",
    )

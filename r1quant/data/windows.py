"""Text to token windows: encoded, packed, counted and hashed.

A text file is one document, its windows in file order, so that others can be given the very same tokens. Other
sources are documents with an eos token between them, shuffled by the seed if there are more than needed.
Nothing is ever padded; the ragged tail is dropped. It does not know models, and it needs no torch.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from r1quant.checkpoint.tokenizer import Tokenizer, trace_of
from r1quant.data import texts
from r1quant.data.texts import Document, Source, WrittenText
from r1quant.errors import CalibrationError, CheckpointError

BYTES_PER_TOKEN = (8, 128)  # more than usual, more than ever: how much of a text file is read at first, and at most
MARGIN = 256  # tokens this far from a cut in the text do not depend on it


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

    @property
    def spread(self) -> Calibration:
        """The same windows in an order of which any first part is spread evenly over all of them: that of their numbers
        with the binary digits reversed (van der Corput's sequence). What uses a part of a text thus sees all of it."""
        digits = max(1, (self.windows - 1).bit_length())
        order = sorted(range(self.windows), key=lambda i: int(f"{i:0{digits}b}"[::-1], 2))
        return Calibration(self.tokens[order], _digest(self.tokens[order]), self.source, self.documents, self.requested)

    def followed_by(self, tokens: npt.NDArray[np.int64], source: str) -> Calibration:
        """With more windows [n, seq_len] after its own, each a document."""
        both = np.concatenate([self.tokens, tokens])
        return Calibration(both, _digest(both), source, self.documents + len(tokens), self.requested + len(tokens))


@dataclass(frozen=True, eq=False)
class Packed:
    """Rows int64 [n, seq_len], how many documents reach into them, and how many tokens were seen for that."""

    tokens: npt.NDArray[np.int64]
    documents: int
    seen: int


def load(
    spec: str | None,
    tokenizer: Tokenizer,
    samples: int,
    seq_len: int,
    seed: int,
    vocabulary: int | None = None,
) -> Calibration:
    """The calibration windows. Raises CalibrationError if the text cannot be used.

    spec        None for the bundled set; a text file; a .jsonl file; `owner/name` or
                `hub:NAME[@CONFIG][:SPLIT[:COLUMN]]` for a Hub dataset
    vocabulary  how many tokens the model knows; CheckpointError if the tokenizer makes others
    """
    return _load(texts.named(spec, texts.DEFAULT), tokenizer, samples, seq_len, seed, vocabulary)


def evaluation_text(
    spec: str | None,
    tokenizer: Tokenizer,
    windows: int,
    seq_len: int,
    seed: int = 0,
    vocabulary: int | None = None,
) -> Calibration:
    """As `load`, for measuring: the bundled text shares no document with the bundled calibration set."""
    return _load(texts.named(spec, texts.HELD_OUT), tokenizer, windows, seq_len, seed, vocabulary)


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
    source = texts.named(spec, texts.DEFAULT)
    if source.kind == "hub":
        raise CalibrationError(f"{source.label} is read as it is needed, not counted", "name a file")
    if source.kind == "text":
        yield tokenizer.encode(texts.read_text(Path(source.name), Path(source.name).stat().st_size))
        return
    for document in texts.read_jsonl(Path(source.name), source.only):
        yield _encoded(document, tokenizer, source)


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
        result = packed(texts.dataset(source, seed))
    else:
        every = texts.read_jsonl(Path(source.name), source.only)
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
        ids = tokenizer.encode(texts.read_text(path, factor * (need + MARGIN)))
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


def _encoded(document: Document, tokenizer: Tokenizer, source: Source) -> list[int]:
    """The tokens of a document: those it was written in, if they mean the same to this tokenizer."""
    if isinstance(document, WrittenText):
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

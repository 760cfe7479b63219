"""Answers that a model gave, kept as they arrive: an interrupted run goes on, and no sample is drawn twice.

One file for each (model, backend, protocol, sampling, problems): lines of JSON, the first of which says whose they are.
It does not know what the answers are worth.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO

from r1quant.backends import Prompt, Runtime, Sampling
from r1quant.checkpoint.tokenizer import Tokenizer
from r1quant.core.json import JsonObject
from r1quant.errors import CheckpointError, OutOfSpaceError, ResumeError
from r1quant.progress import Progress
from r1quant.storage import atomic, cache
from r1quant.storage.lock import HeldElsewhere, take
from r1quant.storage.provenance import sha256

VERSION = 1


@dataclass(frozen=True)
class Sample:
    """One answer.

    key       of the prompt
    count     of its tokens
    finished  whether it ended by itself
    ids       its tokens, the one that ended it included; empty if nobody asked for them to be kept, or none came
    """

    key: str
    text: str
    count: int
    finished: bool
    ids: tuple[int, ...] = ()


class Samples:
    """An open, locked file of samples."""

    def __init__(self, path: Path, file: IO[bytes], have: dict[str, Sample]) -> None:
        self.path, self._file, self._have = path, file, have

    @classmethod
    @contextmanager
    def open(cls, folder: Path, identity: Mapping[str, str]) -> Iterator[Samples]:
        """The samples of `identity`, for as long as the block lasts; folder and file are made if they are not there.

        A last line that a crash has cut off is dropped. Raises ResumeError if another process writes the file, or
        if it holds something else.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path = _path(folder, identity)
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b", buffering=0) as file:
            try:
                take(file)
            except HeldElsewhere:
                raise ResumeError(f"another process is writing {path}", "wait for it to end") from None
            yield cls(path, file, _read(path, file, identity))

    @staticmethod
    def peek(folder: Path, identity: Mapping[str, str]) -> Mapping[str, Sample]:
        """The samples of `identity` that are there by now, by key. Locks and changes nothing, whoever is writing.

        Raises ResumeError if the file holds something else.
        """
        path = _path(folder, identity)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return {}
        return _known(path, _whole(content), identity)

    @property
    def have(self) -> Mapping[str, Sample]:
        """All samples, by key."""
        return self._have

    def add(self, sample: Sample) -> None:
        """Puts a sample on the disk. Raises ValueError for a key that is there, OutOfSpaceError."""
        if sample.key in self._have:
            raise ValueError(f"there is a sample of {sample.key} already")
        stored = {name: value for name, value in asdict(sample).items() if name != "ids" or value}
        _append(self._file, _line(stored), self.path)
        self._have[sample.key] = sample


def collect(
    runtime: Runtime,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    stop: frozenset[int],
    store: Samples,
    decode: Callable[[Sequence[int]], str],
    progress: Progress,
    keep_ids: bool = False,
) -> list[Sample]:
    """A sample for each prompt, in their order; those that the store has are not drawn again.

    decode  token ids to text, for runtimes that give ids; the tokens in `stop` are left out of it

    Raises what the runtime raises; ValueError if two prompts have one key; CheckpointError if the runtime gives
    no answer to some. What came until then is in the store.
    """
    keys = {prompt.key for prompt in prompts}
    if len(keys) != len(prompts):
        raise ValueError("two prompts have the same key")
    missing = [prompt for prompt in prompts if prompt.key not in store.have]
    progress.begin("sampling", len(missing))
    if missing:
        answers = runtime.complete(missing, sampling, stop)
        try:
            for answer in answers:
                ids = [token for token in answer.ids if token not in stop]
                text = decode(ids) if answer.ids else answer.text
                kept = answer.ids if keep_ids else ()
                store.add(Sample(answer.key, text, answer.count, answer.finished, kept))
                progress.advance(1, answer.key)
        finally:
            if close := getattr(answers, "close", None):
                close()
    lost = keys - set(store.have)
    if lost:
        raise CheckpointError(
            f"{runtime.name} gave no answer to {len(lost)} of {len(missing)} prompts", "run the same command again"
        )
    return [store.have[prompt.key] for prompt in prompts]


def prompt_for(
    tokenizer: Tokenizer, name: str, messages: Sequence[Mapping[str, str]], number: int, seed: int
) -> Prompt:
    """Messages in the model's chat format, asked for the number-th time; key and seed follow from all of it.

    Raises CalibrationError if the model has no chat template, or one that cannot render them.
    """
    tokens = tokenizer.encode(tokenizer.render(messages, add_generation_prompt=True))
    return token_prompt(name, tokens, number, seed, messages)


def token_prompt(
    name: str, tokens: Sequence[int], number: int, seed: int, messages: Sequence[Mapping[str, str]] = ()
) -> Prompt:
    """As `prompt_for`, of tokens."""
    key = f"{name}/{sha256(json.dumps(tokens).encode())[:8]}/{number}"
    return Prompt(key, tuple(messages), tuple(tokens), int(sha256(f"{seed}/{key}".encode())[:8], 16) & 0x7FFFFFFF)


def _path(folder: Path, identity: Mapping[str, str]) -> Path:
    return folder / f"samples-{cache.key(identity)}.jsonl"


def _line(content: JsonObject) -> bytes:
    return (json.dumps(content, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")


def _append(file: IO[bytes], line: bytes, path: Path) -> None:
    """Whole, and on the disk, or not at all."""
    start = file.seek(0, os.SEEK_END)
    try:
        written = 0
        while written < len(line):
            written += os.write(file.fileno(), line[written:])
        os.fsync(file.fileno())
    except BaseException as error:
        os.ftruncate(file.fileno(), start)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutOfSpaceError(
                f"the disk is full: {path} cannot grow", "free space, then run the same command again"
            ) from None
        raise


def _read(path: Path, file: IO[bytes], identity: Mapping[str, str]) -> dict[str, Sample]:
    """What the file holds; begins it if it holds nothing. Raises ResumeError."""
    content = file.read()
    lines = _whole(content)
    if (length := sum(map(len, lines))) < len(content):
        file.truncate(length)
    if not lines:
        _append(file, _line({"r1quant_samples": VERSION, "identity": dict(identity)}), path)
        atomic.sync_folder(path.parent)
        return {}
    return _known(path, lines, identity)


def _whole(content: bytes) -> list[bytes]:
    """The lines of a file, without a last one that is cut off."""
    lines = content.splitlines(keepends=True)
    return lines[:-1] if lines and _parsed(lines[-1]) is None else lines


def _known(path: Path, lines: Sequence[bytes], identity: Mapping[str, str]) -> dict[str, Sample]:
    """What whole lines say. Raises ResumeError."""
    if not lines:
        return {}
    parsed = [_parsed(line) for line in lines]
    first = parsed[0] or {}
    if first.get("identity") != dict(identity) or first.get("r1quant_samples") != VERSION:
        raise ResumeError(f"{path} holds samples of something else", "move it away")
    samples = [_sample(line) for line in parsed[1:]]
    have = {sample.key: sample for sample in samples if sample}
    if len(have) != len(samples):
        wrong = next((i for i, sample in enumerate(samples, 2) if not sample), None)
        what = "holds a key twice" if wrong is None else f"is damaged in line {wrong}"
        raise ResumeError(f"{path} {what}", "move it away; its samples will be drawn again")
    return have


def _parsed(line: bytes) -> JsonObject | None:
    """A whole line, None for one that is cut off or damaged."""
    try:
        found = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _sample(line: JsonObject | None) -> Sample | None:
    names = {field.name for field in fields(Sample)}
    if line is None or set(line) | {"ids"} != names:
        return None
    return Sample(**{**line, "ids": tuple(line.get("ids", ()))})

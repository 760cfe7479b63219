"""calib: a file of text that a model wrote, to calibrate on; and what any calibration text holds.

The first line of the file says how the others came about: the model's hash, sampling, seed, backend. The file appears
when it is complete.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from r1quant.checkpoint.artifact import stop_tokens
from r1quant.checkpoint.resolve import is_embedded
from r1quant.checkpoint.safetensors import short_name
from r1quant.checkpoint.tokenizer import Tokenizer
from r1quant.core.json import JsonObject
from r1quant.data import prompts, texts, windows
from r1quant.errors import CalibrationError, RecipeError, ResumeError
from r1quant.jobs.artifacts import open_artifact
from r1quant.jobs.generate.options import GenerateOptions
from r1quant.jobs.generate.selftext import GeneratedText, TextGenerator, summary
from r1quant.metrics import tokenclass
from r1quant.progress import Progress, Silent
from r1quant.records.text import THINKING
from r1quant.storage import atomic, provenance

VERSION = 1
PACKAGES = ("onnxruntime", "llama-cpp-python", "openai")  # that a text may depend on


@dataclass(frozen=True)
class Generated:
    """What was written. header is the first line of the file; seconds are of this process alone."""

    out: Path
    header: JsonObject
    seconds: float
    already_complete: bool

    def as_dict(self) -> JsonObject:
        found = {"out": str(self.out), "seconds": self.seconds, "already_complete": self.already_complete}
        return found | dict(self.header["summary"]) | {"header": dict(self.header)}


@dataclass(frozen=True)
class Shown:
    """What a calibration text holds.

    thinking   tokens inside `<think>`, `</think>` included; None if the model does not know these marks
    unclosed   documents that end inside `<think>`
    header     what the file says of how it was written; None if it says nothing
    """

    source: str
    documents: int
    tokens: int
    longest: int
    thinking: int | None
    unclosed: int | None
    header: JsonObject | None

    def as_dict(self) -> JsonObject:
        share = None if self.thinking is None else self.thinking / max(1, self.tokens)
        return {
            "source": self.source,
            "documents": self.documents,
            "tokens": self.tokens,
            "longest": self.longest,
            "thinking_tokens": self.thinking,
            "thinking_share": share,
            "unclosed": self.unclosed,
            "header": None if self.header is None else dict(self.header),
        }


def generate(
    model: str | Path,
    out: str | Path | None = None,
    options: GenerateOptions | None = None,
    progress: Progress | None = None,
) -> Generated:
    """Has a model answer prompts, and writes what it says, reasoning and all, as JSON lines for `--calib`.

    out  MODEL-self.jsonl in the current folder if it is left out

    Raises RecipeError, CheckpointError, CalibrationError, ResumeError if `out` is something else, MissingDependency,
    and what the backend raises. Answers that came until then are in the cache.
    """
    begun, options, progress = time.monotonic(), options or GenerateOptions(), progress or Silent()
    artifact = open_artifact(model)
    name = short_name(artifact.source, artifact.folder)
    out = Path(out) if out is not None else Path(f"{name.removesuffix('.gguf')}-self.jsonl")
    _check_place(out)
    asked = prompts.load(options.prompts, is_embedded(artifact.source, artifact.folder), options.limit)
    generator = TextGenerator(artifact, options, progress)
    header = _header(name, generator, asked)
    finished = _finished(out, header)
    if finished is not None:
        return Generated(out, finished, time.monotonic() - begun, True)
    rounds = range(options.samples_per_prompt)
    texts = generator.write((key, messages, n) for n, (key, messages) in product(rounds, asked.prompts.items()))
    if not texts:
        raise CalibrationError(
            f"{artifact.source} wrote nothing: no prompt fits its context", "give shorter ones with --prompts"
        )
    if unasked := options.samples_per_prompt * len(asked.prompts) - len(texts):
        progress.note(f"{unasked} prompts did not fit the model's context and are left out")
    environment = provenance.environment() | provenance.versions(PACKAGES)
    header = {**header, "summary": summary(texts), "environment": environment}
    with atomic.replacing(out) as file:
        for row in (header, *map(_row, texts)):
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "replace"))
    return Generated(out, header, time.monotonic() - begun, False)


def show(text: str | None, model: str | Path) -> Shown:
    """What the tokenizer of a model makes of a calibration text: a file, or the bundled one if it is None.

    Raises CalibrationError if the text cannot be read, CheckpointError if the tokenizer cannot.
    """
    artifact = open_artifact(model)
    tokenizer = Tokenizer.from_files(artifact.side_files, artifact.source)
    opening, closing = tokenizer.thinking_marks
    ends = stop_tokens(artifact, tokenizer.eos_id)
    lengths, thinking, unclosed = [], 0, 0
    for document in windows.documents(text, tokenizer):
        lengths.append(len(document))
        kinds = tokenclass.classes(np.array([[0, *document]]), opening, closing, ends)
        thinking += int(kinds[THINKING].sum()) if kinds else 0
        unclosed += _is_open(document, opening, closing)
    if not sum(lengths):
        raise CalibrationError(f"{text} holds no text", "give a file with text in it")
    known = opening is not None and closing is not None
    return Shown(
        "the bundled text" if text is None else Path(text).name,
        len(lengths),
        sum(lengths),
        max(lengths),
        thinking if known else None,
        unclosed if known else None,
        texts.header(Path(text)) if text is not None and Path(text).is_file() else None,
    )


def _is_open(document: Sequence[int], opening: int | None, closing: int | None) -> bool:
    """Whether it ends inside its reasoning."""
    last = next((token for token in reversed(document) if token in (opening, closing)), closing)
    return last != closing


def _header(name: str, generator: TextGenerator, asked: prompts.PromptSet) -> JsonObject:
    """All that decides the texts."""
    options, identity = generator.options, generator.identity
    return {
        texts.HEADER: VERSION,
        "model": name,
        "model_sha256": identity["model"],
        "tokenizer_sha256": provenance.sha256_of_files(generator.model.side_files),
        **{key: identity[key] for key in ("backend", "server", "served", "device", "dtype")},
        "sampling": {key: getattr(options, key) for key in ("temperature", "top_p", "max_tokens", "seed")},
        "stop": sorted(generator.stop),
        "prompts": {"source": asked.source, "sha256": asked.sha256, "count": len(asked.prompts)},
        "samples_per_prompt": options.samples_per_prompt,
    }


def _row(text: GeneratedText) -> JsonObject:
    row = {"kind": "self", "key": text.key, "finished": text.finished, "text": text.text}
    return row | ({"tokens": text.tokens} if text.tokens else {})


def _check_place(out: Path) -> None:
    if out.suffix.lower() != ".jsonl":
        raise RecipeError(f"{out} is not named .jsonl", "give -o a name that ends in .jsonl, so that --calib reads it")
    if not out.absolute().parent.is_dir():
        raise RecipeError(f"there is no folder {out.parent} for the text", "make it, or choose another -o")


def _finished(out: Path, header: JsonObject) -> JsonObject | None:
    """The first line of a file that is there already; None if there is none. Raises ResumeError for another."""
    if not out.exists():
        return None
    found = texts.header(out) if out.is_file() else None
    if found is None or not isinstance(found.get("summary"), dict):
        raise ResumeError(f"{out} exists and is no text of a model", "choose another -o, or delete it first")
    mine = json.loads(json.dumps(header))
    changed = [key for key in mine if found.get(key) != mine[key]]
    if changed:
        raise ResumeError(f"{out} was written with a different {', '.join(changed)}", "choose another -o, or delete it")
    return found

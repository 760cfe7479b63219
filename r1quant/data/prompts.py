"""What a model is asked so that it writes its own calibration text: the bundled prompts, a file, or problems.

The embedded model knows nothing but chains of arithmetic, so it is asked more of those: never one that verify asks,
nor one of the text that verify measures on. No prompt has a system turn, as DeepSeek-R1's protocol wants it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from r1quant.data import problemsets, texts
from r1quant.errors import CalibrationError, RecipeError
from r1quant.storage.provenance import sha256
from r1quant.tinyr1 import problems as tinyr1

BUNDLED = "prompts.jsonl"
TINY_SEED, TINY_COUNT = 7_003, 640
FORM = 'each line is {"prompt": "..."} or {"messages": [{"role": "user", "content": "..."}, ...]}'
Messages = tuple[Mapping[str, str], ...]


@dataclass(frozen=True)
class PromptSet:
    """Messages by the names of the prompts. sha256 is over both, in their order; source is what the user is told."""

    source: str
    sha256: str
    prompts: Mapping[str, Messages]


def load(spec: str | None = None, embedded: bool = False, limit: int | None = None) -> PromptSet:
    """The prompts, the first `limit` of them. Raises CalibrationError if they cannot be used.

    spec      a .jsonl file; None for the bundled prompts, or for problems of its own kind if the model is `embedded`
    """
    if limit is not None and limit < 1:
        raise RecipeError(f"{limit} prompts cannot be asked", "give a number from 1 up")
    if spec is None and embedded:
        source, found = "problems like those of its training", _tiny()
    else:
        path = texts.bundled(BUNDLED) if spec is None else Path(spec)
        source = f"the bundled calib/{BUNDLED}" if spec is None else path.name
        found = dict(_file(path))
    if not found:
        raise CalibrationError(f"{source} holds no prompt", FORM)
    chosen = dict(islice(found.items(), limit))
    stated = json.dumps(list(chosen.items()), separators=(",", ":")).encode()
    return PromptSet(source, sha256(stated), chosen)


def _tiny() -> dict[str, Messages]:
    """Distinct problems of the embedded model's kind, without all that it is measured on."""
    held_out = {problem.question for problem in problemsets.load(problemsets.MINI).problems}
    lines = texts.bundled(texts.HELD_OUT).read_text("utf-8").splitlines()
    turns = [row["messages"][0]["content"] for row in map(json.loads, lines) if row["kind"] == "chain"]
    exclude = frozenset(held_out | {turn.removesuffix(f"\n{tinyr1.INSTRUCTION}") for turn in turns})
    asked: dict[str, None] = {}
    for problem in tinyr1.problems(TINY_SEED, exclude):
        asked[problem.prompt] = None
        if len(asked) == TINY_COUNT:
            break
    return {f"tiny-{i:03d}": ({"role": "user", "content": prompt},) for i, prompt in enumerate(asked)}


def _file(path: Path) -> Iterator[tuple[str, Messages]]:
    if path.is_dir():
        raise CalibrationError(f"{path} is a folder", f"name a .jsonl file: {FORM}")
    try:
        raw = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise CalibrationError(f"{path} cannot be read: {error.strerror}", "check the path") from None
    for number, line in enumerate(raw.split(b"\n"), 1):
        if line.strip():
            yield f"{path.stem}-{number:03d}", _messages(line, f"{path}:{number}")


def _messages(line: bytes, where: str) -> Messages:
    """What one line asks. The last turn is the user's: the next one is what the model is to write."""
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise CalibrationError(f"{where} is not UTF-8", "give a file in UTF-8") from None
    except (ValueError, RecursionError):
        raise CalibrationError(f"{where} is not valid JSON", FORM) from None
    prompt, turns = (row.get("prompt"), row.get("messages")) if isinstance(row, dict) else (None, None)
    if isinstance(prompt, str) and prompt.strip():
        return ({"role": "user", "content": prompt},)
    if not (isinstance(turns, list) and turns and all(map(_is_turn, turns)) and turns[-1]["role"] == "user"):
        raise CalibrationError(f"{where} has neither a prompt nor messages that end with the user's", FORM)
    return tuple({"role": turn["role"], "content": turn["content"]} for turn in turns)


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, dict) and all(isinstance(turn.get(key), str) for key in ("role", "content"))

"""Problems with known answers: the embedded mini set, AIME 2024 and 2025 from the Hub, any dataset or JSON lines file;
and the bundled prompts that ask for JSON and for function calls.

It knows what is asked and what the answer is, not how answers are graded, and no model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from r1quant.data.texts import bundled
from r1quant.errors import CalibrationError, RecipeError
from r1quant.extras import need
from r1quant.storage.provenance import sha256
from r1quant.tinyr1 import problems as tinyr1

MINI = "mini"
HEALTH = "health.jsonl"
QUESTION, ANSWER, KEY, FAMILY = ("problem", "question"), ("answer",), ("id",), ("family",)  # names of columns
FORM = 'each line is {"problem": "...", "answer": "..."}, and may have an "id"'
NAMES = "name mini, aime24, aime25, aime, hub:DATASET or a .jsonl file"


@dataclass(frozen=True)
class Problem:
    """key names it in its set; answer is a number or LaTeX, as its source writes it; family is empty if unknown."""

    key: str
    question: str
    answer: str
    family: str = ""


@dataclass(frozen=True)
class ProblemSet:
    """sha256 is over the keys, questions and answers of the problems that are in it, in their order."""

    name: str
    source: str
    sha256: str
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class HealthPrompt:
    """A prompt whose answer is JSON that a program can check.

    kind    "json": the answer must fit `schema`; "call": it must be a call of one of `tools`
    schema  a part of JSON Schema, see metrics.health.valid_json
    tools   {"name", "description", "parameters": a schema}
    """

    key: str
    kind: Literal["json", "call"]
    question: str
    schema: Mapping[str, Any]
    tools: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Dataset:
    """A dataset on the Hub, or a folder that the datasets package reads; `split` None is its only one, or test."""

    name: str
    config: str | None = None
    split: str | None = None
    revision: str | None = None


# Both hold the columns id, problem and answer, 30 problems each; pinned, so that everybody is asked the same.
AIME = {
    "aime24": Dataset("HuggingFaceH4/aime_2024", None, "train", "2fe88a2f1091d5048c0f36abc874fb997b3dd99a"),
    "aime25": Dataset("math-ai/aime25", None, "test", "563bb8404243c5f09de6ec262f2db674fe5bce9b"),
}
ALIASES = {"2024": "aime24", "aime2024": "aime24", "2025": "aime25", "aime2025": "aime25"}


def load(spec: str, limit: int | None = None) -> ProblemSet:
    """The problems, the first `limit` of them. Raises CalibrationError if they cannot be used.

    spec   mini; aime24, aime25 or aime for both years; hub:NAME[@CONFIG][:SPLIT]; or a .jsonl file
    """
    if limit is not None and limit < 1:
        raise RecipeError(f"{limit} problems cannot be asked", "give a number from 1 up")
    name, source, problems = _load(spec)
    if not problems:
        raise CalibrationError(f"{source} holds no problem", FORM)
    chosen = tuple(problems[:limit])
    return ProblemSet(name, source, _digest(chosen), chosen)


def messages(problem: Problem | HealthPrompt) -> tuple[Mapping[str, str], ...]:
    """The one user turn: for a problem as DeepSeek-R1's protocol has it, the question and then the instruction."""
    asked = problem.question
    return ({"role": "user", "content": f"{asked}\n{tinyr1.INSTRUCTION}" if isinstance(problem, Problem) else asked},)


def health_prompts() -> tuple[HealthPrompt, ...]:
    """The bundled prompts that ask for JSON and for function calls."""
    rows = [json.loads(line) for line in bundled(HEALTH).read_text("utf-8").splitlines()]
    return tuple(HealthPrompt(r["key"], r["kind"], r["prompt"], r["schema"], tuple(r["tools"])) for r in rows)


def _load(spec: str) -> tuple[str, str, list[Problem]]:
    """The name, what the user is told about the source, and all problems."""
    known = ALIASES.get(spec.lower(), spec.lower())
    if known == MINI:
        return MINI, "the held-out problems of tiny-r1", _mini()
    if known in AIME:
        return known, _label(AIME[known]), _hub(AIME[known], known)
    if known == "aime":
        both = [problem for name, dataset in AIME.items() for problem in _hub(dataset, name)]
        return known, " and ".join(map(_label, AIME.values())), both
    if spec.startswith("hub:"):
        dataset = _dataset(spec)
        name = Path(dataset.name).name
        return name, _label(dataset), _hub(dataset, name)
    path = Path(spec)
    if path.is_dir():
        raise CalibrationError(f"{spec} is a folder", f"name a .jsonl file, or a folder with a dataset as hub:{spec}")
    if not path.is_file():
        raise CalibrationError(f"{spec} is neither a set of problems nor a file", NAMES)
    return path.stem, path.name, _file(path)


def _mini() -> list[Problem]:
    path = Path(tinyr1.__file__).parent / "heldout.jsonl"
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [Problem(f"mini-{i:03d}", r["problem"], str(r["answer"]), r["family"]) for i, r in enumerate(rows)]


def _file(path: Path) -> list[Problem]:
    try:
        raw = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise CalibrationError(f"{path} cannot be read: {error.strerror}", "check the path") from None
    found = []
    for number, line in enumerate(raw.split(b"\n"), 1):
        where = f"{path}:{number}"
        try:
            text = line.decode("utf-8").strip()
            row = json.loads(text) if text else None
        except UnicodeDecodeError:
            raise CalibrationError(f"{where} is not UTF-8", "give a file in UTF-8") from None
        except (ValueError, RecursionError):
            raise CalibrationError(f"{where} is not valid JSON", FORM) from None
        if text:
            if not isinstance(row, dict):
                raise CalibrationError(f"{where} is not a JSON object", FORM)
            found.append((_problem(row, f"{path.stem}-{number}", where), where))
    return _distinct(found)


def _dataset(spec: str) -> Dataset:
    name, *rest = spec.removeprefix("hub:").split(":")
    name, _, config = name.partition("@")
    if not name or len(rest) > 1:
        raise CalibrationError(f"{spec!r} does not name a dataset", "write hub:NAME[@CONFIG][:SPLIT]")
    return Dataset(name, config or None, rest[0] if rest and rest[0] else None)


def _label(dataset: Dataset) -> str:
    parts = dataset.name, f"@{dataset.config}" if dataset.config else "", f":{dataset.split}" if dataset.split else ""
    return f"hub:{''.join(parts)}"


def _hub(dataset: Dataset, prefix: str) -> list[Problem]:
    """All rows of a dataset; if a row has an id, it is part of the key."""
    need("datasets")
    import datasets

    label, revision = _label(dataset), dataset.revision
    try:
        loaded = datasets.load_dataset(dataset.name, dataset.config, split=dataset.split, revision=revision)
        splits = {dataset.split: loaded} if dataset.split else dict(loaded)
        chosen = "test" if "test" in splits else next(iter(splits))
        rows = [dict(row) for row in splits[chosen]] if len(splits) == 1 or chosen == "test" else None
    except Exception as error:  # the package raises errors of many libraries
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise CalibrationError(
            f"the dataset {label} cannot be read: {reason}",
            "check the name, the split and the network, or give a .jsonl file",
        ) from None
    if rows is None:
        raise CalibrationError(f"{label} has the splits {', '.join(splits)}", f"name one of them: {label}:SPLIT")
    found = []
    for number, row in enumerate(rows, 1):
        where = f"{label}, row {number}"
        problem = _problem(row, str(number), where)
        found.append((replace(problem, key=f"{prefix}-{problem.key}"), where))
    return _distinct(found)


def _problem(row: Mapping[str, Any], key: str, where: str) -> Problem:
    """The problem of one row; `key` if it has no id. Names of columns may begin with a capital."""
    columns = {str(name).lower(): value for name, value in row.items()}

    def field(names: tuple[str, ...]) -> str:
        return next(filter(None, (_string(columns.get(name)) for name in names)), "")

    question, answer = field(QUESTION), field(ANSWER)
    for value, names in (question, QUESTION), (answer, ANSWER):
        if not value:
            raise CalibrationError(
                f"{where} has no {' or '.join(names)}; it has {', '.join(map(str, row)) or 'nothing'}", FORM
            )
    return Problem(field(KEY) or key, question, answer, field(FAMILY))


def _string(value: Any) -> str:
    """A text without the white space around it, or a number written out; empty for anything else."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() else repr(value)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else ""


def _distinct(found: Iterable[tuple[Problem, str]]) -> list[Problem]:
    """Each key and each question once: a problem that counts twice makes intervals too narrow."""
    problems: list[Problem] = []
    seen: dict[tuple[str, str], str] = {}
    for problem, where in found:
        for what in ("id", problem.key), ("problem", problem.question):
            if what in seen:
                raise CalibrationError(f"{where} has the same {what[0]} as {seen[what]}", "leave one of the two out")
            seen[what] = where
        problems.append(problem)
    return problems


def _digest(problems: Iterable[Problem]) -> str:
    rows = [[problem.key, problem.question, problem.answer] for problem in problems]
    return sha256(json.dumps(rows, ensure_ascii=True, separators=(",", ":")).encode())

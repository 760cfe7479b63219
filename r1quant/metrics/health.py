"""What quantization breaks first in models that reason: reasoning that does not end, loops, strange scripts, answers
without a box, lengths, and JSON that no longer parses. Pure on texts; it knows no tokens and no models.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from r1quant.core.json import JsonObject
from r1quant.core.thinking import CLOSING
from r1quant.metrics.grading import after_think
from r1quant.metrics.stats import interval
from r1quant.records.answers import HabitComparison, Habits, HabitShares, LengthSummary

# A text that goes on repeating itself does so until it is cut, so these may be far above what people write: four
# times the same, and 200 characters of it, which is three to four lines.
REPEATS, LOOP_CHARACTERS = 4, 200
TAIL = 16384  # characters at the end that are looked at; loops of up to a quarter of that are found
EVERYWHERE = {"LATIN", "GREEK"}  # scripts that mathematics is written in, whatever the language
JAPANESE = {"HIRAGANA", "KATAKANA", "CJK"}
SHARES = tuple(field.name for field in fields(HabitShares))
TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


@dataclass(frozen=True)
class WrittenAnswer:
    """The prompt's text, what was written (the reasoning included), how many tokens that is, whether it ended by
    itself, and whether the grader found an answer in it."""

    prompt: str
    text: str
    count: int
    finished: bool
    parsed: bool


@dataclass(frozen=True)
class Signs:
    """Of one answer, as `HabitShares` has them; length is in tokens."""

    closed_think: bool
    truncated: bool
    unparsed: bool
    loops: bool
    language_mixing: bool
    length: int


def signs(answer: WrittenAnswer) -> Signs:
    return Signs(
        closed_think=CLOSING in answer.text,
        truncated=not answer.finished,
        unparsed=not answer.parsed,
        loops=loop_period(answer.text) is not None,
        language_mixing=bool(foreign_scripts(answer.text, answer.prompt)),
        length=answer.count,
    )


def loop_period(text: str) -> int | None:
    """The shortest period, in characters, in which the end of a text repeats itself; None if it does not.

    A loop is an end of at least `LOOP_CHARACTERS` characters that consists of at least `REPEATS` equal parts, the last
    of which may be cut. A chain of similar steps with other numbers is none. The period of every end at once comes
    from the failure function of the reversed text: Knuth, Morris and Pratt, SIAM J. Comput. 6 (1977).
    """
    reverse = text[-TAIL:][::-1]
    failure, best = [0] * len(reverse), None
    for i in range(1, len(reverse)):
        k = failure[i - 1]
        while k and reverse[i] != reverse[k]:
            k = failure[k - 1]
        failure[i] = k + (reverse[i] == reverse[k])
        length, period = i + 1, i + 1 - failure[i]
        if length >= max(LOOP_CHARACTERS, REPEATS * period) and (best is None or period < best):
            best = period
    return best


def foreign_scripts(text: str, prompt: str) -> set[str]:
    """Scripts of letters in the text that are not in the prompt and not Latin or Greek: {"CJK", "CYRILLIC", ...}."""
    known = _scripts(prompt)
    if known & {"HIRAGANA", "KATAKANA"}:
        known |= JAPANESE
    return _scripts(text) - known - EVERYWHERE


def summary(signs_of_each: Sequence[Signs]) -> Habits:
    """Shares of at least one answer, and their lengths in tokens."""
    lengths = np.array([signs.length for signs in signs_of_each], np.float64)
    shares = {name: float(np.mean([getattr(signs, name) for signs in signs_of_each])) for name in SHARES}
    return Habits(**shares, length=LengthSummary(float(lengths.mean()), float(np.median(lengths)), int(lengths.max())))


def compare(baseline: Sequence[WrittenAnswer], quantized: Sequence[WrittenAnswer]) -> HabitComparison:
    """Two models on the same prompts in the same order.

    The interval of the ratio of mean lengths comes from resampling prompts; None if there is one prompt only.
    """
    if [answer.prompt for answer in baseline] != [answer.prompt for answer in quantized]:
        raise ValueError("the two models were not asked the same")
    sides = [[signs(answer) for answer in side] for side in (baseline, quantized)]
    before, after = (summary(side) for side in sides)
    lengths: dict[str, list[tuple[int, int]]] = {}
    for answer, first, second in zip(baseline, *sides, strict=True):
        lengths.setdefault(answer.prompt, []).append((first.length, second.length))
    blocks = np.array([np.sum(pairs, axis=0) for pairs in lengths.values()], np.float64)
    written = bool((blocks[:, 0] > 0).all())
    return HabitComparison(
        baseline=before,
        quantized=after,
        delta=HabitShares(**{name: getattr(after, name) - getattr(before, name) for name in SHARES}),
        length_ratio=after.length.mean / before.length.mean if written else None,
        length_ratio_ci95=interval(blocks, lambda sums: sums[..., 1] / sums[..., 0]) if written else None,
    )


def valid_json(text: str, schema: JsonObject, thinking: bool = False) -> bool:
    """Whether what stands after the reasoning is one JSON value, alone or in a fence, that fits the schema.

    Of JSON Schema it knows type (one name), enum, required, properties, additionalProperties false and items.
    """
    value = _json(text, thinking)
    return value is not _NOTHING and _fits(value, schema)


def valid_call(text: str, tools: Iterable[JsonObject], thinking: bool = False) -> bool:
    """Whether what stands after the reasoning is {"name", "arguments"} and nothing else, a call of one of the tools.

    A tool is {"name", "parameters": a schema}; arguments that it does not name are not valid.
    """
    value = _json(text, thinking)
    if not isinstance(value, dict) or set(value) != {"name", "arguments"}:
        return False
    called = [tool for tool in tools if tool["name"] == value["name"]]
    return bool(called) and _fits(value["arguments"], {**called[0]["parameters"], "additionalProperties": False})


def _scripts(text: str) -> set[str]:
    return {script for c in set(text) if (script := _script(c))}


def _script(character: str) -> str | None:
    """The first word of a letter's name; none for what is no letter, and for letters that serve as signs."""
    if not character.isalpha() or 0x2100 <= ord(character) <= 0x214F:  # the letterlike signs: alef, Planck's constant
        return None
    plain = unicodedata.normalize("NFKC", character)[0]  # mathematical alphabets, full width, ligatures
    name = unicodedata.name(plain, "UNKNOWN")
    first = name.split()[0].split("-")[0]
    return None if first == "MODIFIER" else "CJK" if first == "IDEOGRAPHIC" else first


_NOTHING = object()


def _json(text: str, thinking: bool) -> Any:
    """The value after the reasoning, `_NOTHING` if there is none or something beside it."""
    answer = (after_think(text, thinking) or "").strip()
    if answer.startswith("```") and answer.endswith("```") and "\n" in answer:
        opening, _, answer = answer[:-3].partition("\n")
        if opening not in ("```", "```json", "```JSON"):
            return _NOTHING
    try:
        return json.loads(answer, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return _NOTHING


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _fits(value: Any, schema: JsonObject) -> bool:
    kind = schema.get("type")
    if kind is not None and not isinstance(value, TYPES[kind]):
        return False
    if isinstance(value, bool) and kind in ("integer", "number"):
        return False
    if "enum" in schema and not any(type(value) is type(one) and value == one for one in schema["enum"]):
        return False
    if isinstance(value, dict):
        properties: JsonObject = schema.get("properties", {})
        if not set(schema.get("required", ())) <= set(value):
            return False
        if schema.get("additionalProperties") is False and not set(value) <= set(properties):
            return False
        return all(_fits(value[name], part) for name, part in properties.items() if name in value)
    if isinstance(value, list):
        return all(_fits(one, schema.get("items", {})) for one in value)
    return True

"""What quantization breaks first in models that reason: reasoning that does not end, loops, strange scripts, answers
without a box, lengths, and JSON that no longer parses. Pure on texts; it knows no tokens and no models.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from r1quant.core.thinking import CLOSING
from r1quant.metrics.grading import after_think
from r1quant.metrics.stats import interval

# A text that goes on repeating itself does so until it is cut, so these may be far above what people write: four
# times the same, and 200 characters of it, which is three to four lines.
REPEATS, LOOP_CHARACTERS = 4, 200
TAIL = 16384  # characters at the end that are looked at; loops of up to a quarter of that are found
EVERYWHERE = {"LATIN", "GREEK"}  # scripts that mathematics is written in, whatever the language
JAPANESE = {"HIRAGANA", "KATAKANA", "CJK"}
SHARES = ("closed_think", "truncated", "unparsed", "loops", "language_mixing")
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
class ModelSummary:
    """One completion: the prompt's text, what was written (the reasoning included), how many tokens that is, whether it
    ended by itself, and whether the grader found an answer in it."""

    prompt: str
    text: str
    count: int
    finished: bool
    parsed: bool


@dataclass(frozen=True)
class Signs:
    """Of one completion.

    closed_think     the reasoning was ended
    truncated        it did not end by itself
    unparsed         it gives no answer that can be graded
    loops            it ends in something said over and over
    language_mixing  it has letters of a script that neither its prompt nor mathematics has
    length           in tokens
    """

    closed_think: bool
    truncated: bool
    unparsed: bool
    loops: bool
    language_mixing: bool
    length: int


def signs(told: ModelSummary) -> Signs:
    return Signs(
        closed_think=CLOSING in told.text,
        truncated=not told.finished,
        unparsed=not told.parsed,
        loops=loop_period(told.text) is not None,
        language_mixing=bool(foreign_scripts(told.text, told.prompt)),
        length=told.count,
    )


def loop_period(text: str) -> int | None:
    """The shortest period, in characters, in which the end of a text repeats itself; None where it does not.

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


def summary(found: Sequence[Signs]) -> dict[str, Any]:
    """Shares of at least one completion, and their lengths in tokens."""
    lengths = np.array([each.length for each in found], np.float64)
    return {
        **{name: float(np.mean([getattr(each, name) for each in found])) for name in SHARES},
        "length": {"mean": float(lengths.mean()), "median": float(np.median(lengths)), "max": int(lengths.max())},
    }


def compare(baseline: Sequence[ModelSummary], quantized: Sequence[ModelSummary]) -> dict[str, Any]:
    """Two models on the same prompts in the same order: the summary of each, and `delta`, quantized - baseline.

    length_ratio is the quotient of the mean lengths; its 95 % interval comes from resampling prompts. Both are null
    where the baseline wrote nothing to some prompt, the interval also where there is one prompt only.
    """
    if [told.prompt for told in baseline] != [told.prompt for told in quantized]:
        raise ValueError("the two models were not asked the same")
    sides = [[signs(told) for told in side] for side in (baseline, quantized)]
    before, after = (summary(side) for side in sides)
    lengths: dict[str, list[tuple[int, int]]] = {}
    for told, first, second in zip(baseline, *sides, strict=True):
        lengths.setdefault(told.prompt, []).append((first.length, second.length))
    blocks = np.array([np.sum(pairs, axis=0) for pairs in lengths.values()], np.float64)
    written = bool((blocks[:, 0] > 0).all())
    low, high = interval(blocks, lambda sums: sums[..., 1] / sums[..., 0]) if written else (np.nan, np.nan)
    return {
        "baseline": before,
        "quantized": after,
        "delta": {name: after[name] - before[name] for name in SHARES},
        "length_ratio": after["length"]["mean"] / before["length"]["mean"] if written else None,
        "length_ratio_ci95": None if np.isnan(low) else [float(low), float(high)],
    }


def valid_json(text: str, schema: Mapping[str, Any], thinking: bool = False) -> bool:
    """Whether what stands after the reasoning is one JSON value, alone or in a fence, that fits the schema.

    Of JSON Schema it knows type (one name), enum, required, properties, additionalProperties false and items.
    """
    value = _json(text, thinking)
    return value is not _NOTHING and _fits(value, schema)


def valid_call(text: str, tools: Iterable[Mapping[str, Any]], thinking: bool = False) -> bool:
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
    """The value after the reasoning, `_NOTHING` where there is none or something beside it."""
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


def _fits(value: Any, schema: Mapping[str, Any]) -> bool:
    kind = schema.get("type")
    if kind is not None and not isinstance(value, TYPES[kind]):
        return False
    if isinstance(value, bool) and kind in ("integer", "number"):
        return False
    if "enum" in schema and not any(type(value) is type(one) and value == one for one in schema["enum"]):
        return False
    if isinstance(value, dict):
        properties: Mapping[str, Any] = schema.get("properties", {})
        if not set(schema.get("required", ())) <= set(value):
            return False
        if schema.get("additionalProperties") is False and not set(value) <= set(properties):
            return False
        return all(_fits(value[name], part) for name, part in properties.items() if name in value)
    if isinstance(value, list):
        return all(_fits(one, schema.get("items", {})) for one in value)
    return True

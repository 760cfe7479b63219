"""Signs of health, on texts such as models write them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from r1quant.data.problemsets import health_prompts
from r1quant.metrics.health import (
    TYPES,
    Signs,
    WrittenAnswer,
    compare,
    foreign_scripts,
    loop_period,
    signs,
    summary,
    valid_call,
    valid_json,
)
from r1quant.records.answers import Habits, HabitShares, LengthSummary
from r1quant.records.interval import Interval
from r1quant.tinyr1.problems import problems

WAIT = "Wait, let me check that again. "
PROSE = (
    "Okay, so I need to find the remainder. First, I compute the square, which is 1764. Then I divide by 100, and what "
    "is left is 64. Hmm, let me double-check: 17 times 100 is 1700, and 1764 minus 1700 is 64. Yes, that is right. "
)


@pytest.mark.parametrize(
    ("text", "period"),
    [
        (PROSE + WAIT * 8, len(WAIT)),
        (PROSE + WAIT * 8 + WAIT[:10], len(WAIT)),
        (PROSE * 4, len(PROSE)),
        (PROSE * 30, len(PROSE)),
        (PROSE + "0" * 300, 1),
        (PROSE + "\n\n" * 100, 1),
        (PROSE + "x_7: 6*6=36, 36+5=41\n" * 12, 21),
        (PROSE + "但是，" * 80, 3),
    ],
)
def test_loops(text: str, period: int) -> None:
    assert loop_period(text) == period


@pytest.mark.parametrize(
    "text",
    [
        "",
        PROSE,
        PROSE + WAIT * 3,
        PROSE * 3,
        WAIT * 8 + PROSE,  # it found its way out
        PROSE + "-" * 120,
        "\n".join(f"x_{i}: 6*{i}={6 * i}, {6 * i}+5={6 * i + 5}" for i in range(60)),
        "".join(f"Step {i}: the value stays the same, so nothing changes here.\n" for i in range(1, 40)),
        "| n | f(n) |\n|---|---|\n" + "".join(f"| {n} | {n * n % 7} |\n" for n in range(60)),
        ", ".join(str(n % 7) for n in range(20)),
        "The digits are 0." + "142857" * 30,
    ],
)
def test_what_only_looks_like_a_loop(text: str) -> None:
    assert loop_period(text) is None


def test_the_chains_of_the_embedded_model_are_no_loops_and_are_healthy() -> None:
    stream = problems(11)
    for _ in range(400):
        problem = next(stream)
        found = signs(WrittenAnswer(problem.prompt, problem.solution, 100, True, True))
        assert found == Signs(True, False, False, False, False, 100)


def test_the_period_is_the_smallest_of_any_end() -> None:
    """Against trying every period and every length."""
    generator = np.random.default_rng(0)
    for _ in range(60):
        part = "".join(generator.choice(list("ab"), int(generator.integers(1, 90))))
        head = "".join(generator.choice(list("ab"), 50))
        text = head + part * int(generator.integers(1, 9))
        ends = [
            p
            for p in range(1, len(text) // 4 + 1)
            for n in (max(200, 4 * p),)
            if n <= len(text) and all(text[-i] == text[-i - p] for i in range(1, n - p + 1))
        ]
        assert loop_period(text) == min(ends, default=None)


@pytest.mark.parametrize(
    ("text", "prompt", "found"),
    [
        ("The angle α is 30°, ∑ x² ≤ ℵ₀ over ℝ, 𝐱 ∈ 𝒞, é, ﬁne, ª", "What is it?", set()),
        ("So 但是 it is 5", "What is it?", {"CJK"}),
        ("Значит 5", "What is it?", {"CYRILLIC"}),
        ("그래서 하면 よって ทำ", "What is it?", {"HANGUL", "HIRAGANA", "THAI"}),
        ("所以答案是 5, or five", "求解这个方程", set()),
        ("所以 よって", "求解这个方程", {"HIRAGANA"}),
        ("答えはカタカナ々ー", "これは何ですか", set()),
        ("5", "", set()),
    ],
)
def test_language_mixing(text: str, prompt: str, found: set[str]) -> None:
    assert foreign_scripts(text, prompt) == found
    assert signs(WrittenAnswer(prompt, text, 1, True, True)).language_mixing == bool(found)


WELL = WrittenAnswer("How many?", "x</think>\\boxed{1}", 100, True, True)
ILL = WrittenAnswer("How many?", "<think>但是 " + WAIT * 20, 300, False, False)


def test_signs() -> None:
    assert signs(ILL) == Signs(False, True, True, True, True, 300)
    assert signs(WELL) == Signs(True, False, False, False, False, 100)


def test_summary() -> None:
    assert summary([signs(told) for told in (WELL, WELL, ILL, WELL)]) == Habits(
        closed_think=0.75, truncated=0.25, unparsed=0.25, loops=0.25, language_mixing=0.25,
        length=LengthSummary(mean=150.0, median=100.0, max=300),
    )  # fmt: skip


def test_comparison() -> None:
    prompts = [f"How many are {n}?" for n in range(8) for _ in range(2)]  # two samples each
    before = [replace(WELL, prompt=prompt) for prompt in prompts]
    after = [replace(ILL if n % 4 == 3 else WELL, prompt=prompt) for n, prompt in enumerate(prompts)]
    found = compare(before, after)
    assert found.baseline == summary([signs(told) for told in before])
    assert found.quantized == summary([signs(told) for told in after])
    assert found.delta == HabitShares(
        closed_think=-0.25, truncated=0.25, unparsed=0.25, loops=0.25, language_mixing=0.25
    )
    assert found.length_ratio == 1.5 and found.length_ratio_ci95 is not None
    low, high = found.length_ratio_ci95
    assert 0.8 < low < 1.5 < high < 3
    assert compare(before, before).length_ratio_ci95 == Interval(1.0, 1.0)
    alone = compare([WELL], [ILL])
    assert (alone.length_ratio, alone.length_ratio_ci95) == (3.0, None)
    silent = compare([replace(WELL, text="", count=0)], [ILL])
    assert (silent.length_ratio, silent.length_ratio_ci95) == (None, None)
    with pytest.raises(ValueError, match="not asked the same"):
        compare(before, after[:4])


SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "score": {"type": "number"},
        "kind": {"type": "string", "enum": ["a", "b"]},
        "tags": {"type": "array", "items": {"type": "string"}},
        "sure": {"type": "boolean"},
        "none": {"type": "null"},
    },
    "required": ["name", "age"],
}


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ('{"name": "A", "age": 3}', True),
        ('<think>\nLet me see: {"name": 1}\n</think>\n\n{"name": "A", "age": 3}\n', True),
        ('</think>```json\n{"name": "A",\n"age": 3}\n```', True),
        ('```\n{"name": "A", "age": 3}\n```', True),
        ('{"name": "A", "age": 3, "score": 1, "kind": "b", "tags": [], "sure": true, "none": null}', True),
        ('{"name": "A", "age": 3, "other": 1}', True),
        ('{"name": "A"}', False),
        ('{"name": "A", "age": "3"}', False),
        ('{"name": "A", "age": 3.5}', False),
        ('{"name": "A", "age": true}', False),
        ('{"name": "A", "age": 3, "score": "1"}', False),
        ('{"name": "A", "age": 3, "score": NaN}', False),
        ('{"name": "A", "age": 3, "kind": "c"}', False),
        ('{"name": "A", "age": 3, "tags": ["x", 1]}', False),
        ('{"name": "A", "age": 3, "sure": 1}', False),
        ('{"name": "A", "age": 3, "none": 0}', False),
        ("{'name': 'A', 'age': 3}", False),
        ('{"name": "A", "age": 3,}', False),
        ('{"name": "A", "age": 3', False),
        ('Here it is: {"name": "A", "age": 3}', False),
        ('{"name": "A", "age": 3} Hope this helps!', False),
        ('```python\n{"name": "A", "age": 3}\n```', False),
        ('[{"name": "A", "age": 3}]', False),
        ('<think>{"name": "A", "age": 3}', False),
        ("", False),
        ("```", False),
        ("[" * 100_000, False),
    ],
)
def test_valid_json(text: str, valid: bool) -> None:
    assert valid_json(text, SCHEMA) is valid
    assert not valid_json(text, SCHEMA, thinking=True) or "</think>" in text


def test_schemas() -> None:
    assert valid_json("[[1, 0], [0, 1]]", {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}})
    assert not valid_json(
        "[[1, 0], [0, true]]", {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}}
    )
    closed = {"type": "object", "properties": {"a": {}}, "additionalProperties": False}
    assert valid_json('{"a": null}', closed) and not valid_json('{"a": 1, "b": 1}', closed)
    assert valid_json("null", {}) and valid_json("1", {"enum": [1]}) and not valid_json("true", {"enum": [1]})


LIGHT = {"room": {"type": "string", "enum": ["hall"]}, "on": {"type": "boolean"}}
TOOLS = [
    {"name": "light", "parameters": {"type": "object", "properties": LIGHT, "required": ["room"]}},
    {"name": "now", "parameters": {"type": "object", "properties": {}}},
]


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ('<think>x</think>{"name": "light", "arguments": {"room": "hall", "on": true}}', True),
        ('```json\n{"name": "light", "arguments": {"room": "hall"}}\n```', True),
        ('{"name": "now", "arguments": {}}', True),
        ('{"name": "now", "arguments": {"zone": "UTC"}}', False),
        ('{"name": "light", "arguments": {}}', False),
        ('{"name": "light", "arguments": {"room": "attic"}}', False),
        ('{"name": "light", "arguments": {"room": "hall", "on": "yes"}}', False),
        ('{"name": "light", "arguments": "{\\"room\\": \\"hall\\"}"}', False),
        ('{"name": "lamp", "arguments": {"room": "hall"}}', False),
        ('{"name": ["light"], "arguments": {}}', False),
        ('{"name": "now"}', False),
        ('{"name": "now", "arguments": {}, "id": 1}', False),
        ('[{"name": "now", "arguments": {}}]', False),
        ('light(room="hall")', False),
    ],
)
def test_valid_call(text: str, valid: bool) -> None:
    assert valid_call(text, TOOLS) is valid


def example(schema: Mapping[str, Any]) -> Any:
    """A value that fits a schema."""
    if "enum" in schema:
        return schema["enum"][-1]
    if schema["type"] == "object":
        return {name: example(part) for name, part in schema["properties"].items()}
    if schema["type"] == "array":
        return [example(schema["items"])] * 2
    return {"string": "a", "integer": 3, "number": 2.5, "boolean": False, "null": None}[schema["type"]]


def known(schema: Mapping[str, Any]) -> None:
    assert set(schema) <= {"type", "properties", "required", "items", "enum", "additionalProperties"}
    assert schema["type"] in TYPES
    assert set(schema.get("required", ())) <= set(schema.get("properties", {}))
    for part in (*schema.get("properties", {}).values(), *filter(None, [schema.get("items")])):
        known(part)


def test_the_bundled_prompts_can_be_answered_and_failed() -> None:
    prompts = health_prompts()
    assert len(prompts) == len({p.key for p in prompts}) == len({p.question for p in prompts}) == 24
    assert sum(p.kind == "json" for p in prompts) == 12
    for prompt in prompts:
        if prompt.kind == "json":
            known(prompt.schema)
            assert not prompt.tools
            assert valid_json(f"<think></think>{json.dumps(example(prompt.schema))}", prompt.schema)
            assert not any(valid_json(text, prompt.schema) for text in ("{}", "[1]", "", prompt.question))
        for tool in prompt.tools:
            known(tool["parameters"])
            assert json.dumps(tool) in prompt.question
            call = {"name": tool["name"], "arguments": example(tool["parameters"])}
            assert valid_call(json.dumps(call), prompt.tools)
            assert not valid_call(json.dumps({**call, "arguments": {}}), prompt.tools)
        assert prompt.kind == "json" or not valid_call("{}", prompt.tools)

"""Sets of problems: the embedded one, AIME as the Hub lays it out, files, and what is refused."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from r1quant.data import problemsets
from r1quant.data.problemsets import Problem, health_prompts, load, messages
from r1quant.errors import CalibrationError, MissingDependency, R1QuantError, RecipeError
from r1quant.tinyr1.problems import INSTRUCTION


def lines(path: Path, *rows: Mapping[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def test_the_embedded_set() -> None:
    mini = load("mini")
    assert (mini.name, len(mini.problems), len({p.key for p in mini.problems})) == ("mini", 400, 400)
    assert len({p.family for p in mini.problems[:60]}) == 7
    assert all(0 <= int(p.answer) <= 999 for p in mini.problems)
    first = load("MINI", 5)
    assert first.problems == mini.problems[:5] and first.sha256 != mini.sha256
    assert load("mini", 1000).sha256 == mini.sha256


def test_the_prompt_is_one_user_turn() -> None:
    (turn,) = messages(Problem("a", "What is 6*7?", "42"))
    assert turn == {"role": "user", "content": f"What is 6*7?\n{INSTRUCTION}"}
    prompt = health_prompts()[0]
    assert messages(prompt) == ({"role": "user", "content": prompt.question},)


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    rows = [
        {"id": "a-1", "problem": " What is 6*7? ", "answer": 42},
        {"id": 7, "problem": "And half of it?", "answer": 21.0, "family": "halves"},
        {"question": "Name it.", "answer": r"\frac{1}{2}"},
        {"problem": "角度は？", "answer": 0.5},
    ]
    path.write_text("\ufeff" + "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    mine = load(str(path))
    assert mine.problems == (
        Problem("a-1", "What is 6*7?", "42"),
        Problem("7", "And half of it?", "21", "halves"),
        Problem("mine-5", "Name it.", r"\frac{1}{2}"),
        Problem("mine-7", "角度は？", "0.5"),
    )
    assert (mine.name, mine.source) == ("mine", "mine.jsonl")


def test_the_hash_is_of_keys_questions_and_answers_and_of_nothing_else(tmp_path: Path) -> None:
    base = {"id": "a", "problem": "What is 6*7?", "answer": "42"}
    first = load(lines(tmp_path / "one.jsonl", base))
    assert load(lines(tmp_path / "two.jsonl", {**base, "family": "f", "url": "x"})).sha256 == first.sha256
    for change in ({"id": "b"}, {"problem": "What is 7*6?"}, {"answer": "43"}):
        assert load(lines(tmp_path / "two.jsonl", {**base, **change})).sha256 != first.sha256
    stored = b'[["a","What is 6*7?","42"]]'
    assert first.sha256 == hashlib.sha256(stored).hexdigest()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no problem"),
        ("\n \n", "holds no problem"),
        ("{'problem': 1}", ":1 is not valid JSON"),
        ('{"problem": "a", "answer": "1"}\n[1]', ":2 is not a JSON object"),
        ('{"problem": "a", "solution": "1"}', ":1 has no answer; it has problem, solution"),
        ('{"problem": "", "answer": "1"}', ":1 has no problem or question"),
        ("{}", "it has nothing"),
        ('{"problem": "a", "answer": null}', "has no answer"),
        ('{"problem": "a", "answer": true}', "has no answer"),
        ('{"problem": "a", "answer": "  "}', "has no answer"),
        ('{"id": 1, "problem": "a", "answer": "1"}\n{"id": 1, "problem": "b", "answer": "1"}', "same id as"),
        ('{"problem": "a", "answer": "1"}\n\n{"problem": "a", "answer": "2"}', ":3 has the same problem as"),
        ("[" * 100_000, "is not valid JSON"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(content, "utf-8")
    with pytest.raises(CalibrationError) as caught:
        load(str(path))
    assert message in caught.value.message and caught.value.hint
    assert str(caught.value).count("\n") == 1


def test_other_refusals(tmp_path: Path) -> None:
    (tmp_path / "latin.jsonl").write_bytes(b'{"problem": "caf\xe9", "answer": "1"}')
    for spec, message in {
        str(tmp_path / "latin.jsonl"): "is not UTF-8",
        str(tmp_path): "is a folder",
        str(tmp_path / "none.jsonl"): "neither a set of problems nor a file",
        "aime99": "neither a set of problems nor a file",
        "hub:": "does not name a dataset",
        "hub:a:b:c": "does not name a dataset",
    }.items():
        with pytest.raises(CalibrationError, match=message):
            load(spec)
    for limit in (0, -1):
        with pytest.raises(RecipeError, match="cannot be asked"):
            load("mini", limit)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for datasets that the datasets package reads without a network."""
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path


def folder(path: Path, split: str, *rows: Mapping[str, Any]) -> str:
    path.mkdir(exist_ok=True)
    lines(path / f"{split}.jsonl", *rows)
    return str(path)


def test_aime_as_the_hub_lays_it_out(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The columns of the two datasets, with other problems in them."""
    first = [{"id": 60 + i, "problem": f"What is {i}+{i}?", "solution": "", "answer": f"{i + i:03d}"} for i in range(3)]
    second = [{"problem": f"What is {i}*{i}?", "answer": str(i * i), "id": str(i)} for i in range(4)]
    names = {"aime24": folder(hub / "a", "train", *first), "aime25": folder(hub / "b", "test", *second)}
    for key, name in names.items():
        pinned = problemsets.AIME[key]
        assert len(pinned.revision or "") == 40
        monkeypatch.setitem(problemsets.AIME, key, problemsets.Dataset(name, pinned.config, pinned.split))
    assert load("2024").problems == tuple(
        Problem(f"aime24-{60 + i}", f"What is {i}+{i}?", f"00{2 * i}") for i in range(3)
    )
    assert load("aime2024").sha256 == load("AIME24").sha256 == load("2024").sha256 != load("aime25").sha256
    assert [p.key for p in load("aime2025", 2).problems] == ["aime25-0", "aime25-1"]
    both = load("aime")
    assert both.problems == load("aime24").problems + load("aime25").problems and both.name == "aime"


def test_any_dataset(hub: Path) -> None:
    rows = [{"Question": "What is 6*7?", "Answer": 42}, {"Question": "And 6*8?", "Answer": 48}]
    name = folder(hub / "any", "train", *rows)
    any_set = load(f"hub:{name}")
    assert any_set.problems == (Problem("any-1", "What is 6*7?", "42"), Problem("any-2", "And 6*8?", "48"))
    assert load(f"hub:{name}:train").sha256 == any_set.sha256
    folder(hub / "any", "validation", {"Question": "q", "Answer": 1})
    with pytest.raises(CalibrationError, match="has the splits train, validation"):
        load(f"hub:{name}")
    folder(hub / "any", "test", {"Question": "q", "Answer": 1})
    assert [p.question for p in load(f"hub:{name}").problems] == ["q"]
    other = folder(hub / "other", "train", {"problem": "q", "solution": "1"})
    for spec, message in {
        f"hub:{other}": "row 1 has no answer; it has problem, solution",
        f"hub:{name}:dev": "cannot be read",
        f"hub:{hub / 'nowhere'}": "cannot be read",
    }.items():
        with pytest.raises(CalibrationError, match=message) as caught:
            load(spec)
        assert str(caught.value).count("\n") == 1


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for spec in ("aime24", "aime", "hub:owner/name"):
        with pytest.raises(MissingDependency) as caught:
            load(spec)
        assert caught.value.hint == "pip install 'r1quant[datasets]'"
        assert isinstance(caught.value, R1QuantError)

"""What a model is asked when it writes its own text: never what it is measured on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from r1quant.data import problemsets, prompts, texts
from r1quant.errors import CalibrationError, R1QuantError
from r1quant.tinyr1.problems import INSTRUCTION


def questions(found: prompts.PromptSet) -> set[str]:
    return {messages[-1]["content"].removesuffix(f"\n{INSTRUCTION}") for messages in found.prompts.values()}


def measured_on() -> set[str]:
    """All that verify asks of its own accord, or measures a text of."""
    rows = [json.loads(line) for line in texts.bundled("verify.jsonl").read_text("utf-8").splitlines()]
    turns = [row["messages"][0]["content"] for row in rows if "messages" in row]
    turns += [row["prompt"] for row in rows if "prompt" in row]
    asked = {problem.question for problem in problemsets.load("mini").problems}
    asked |= {prompt.question for prompt in problemsets.health_prompts()}
    return asked | {turn.removesuffix(f"\n{INSTRUCTION}") for turn in turns}


# The second is the seed of the held-out problems, the third that of the text verify measures on.
@pytest.mark.parametrize("seed", [prompts.TINY_SEED, 1_000_003, 7_002])
def test_the_embedded_model_is_never_asked_what_it_is_measured_on(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "TINY_SEED", seed)
    found = prompts.load(embedded=True)
    assert len(problemsets.load("mini").problems) == 400
    assert len(found.prompts) == len(questions(found)) == prompts.TINY_COUNT
    assert not questions(found) & measured_on()


def test_the_bundled_prompts_are_many_different_and_not_what_is_measured() -> None:
    rows = [json.loads(line) for line in texts.bundled(prompts.BUNDLED).read_text("utf-8").splitlines()]
    assert all(set(row) == {"kind", "prompt"} for row in rows)
    kinds = [row["kind"] for row in rows]
    assert len(rows) >= 128 and all(kinds.count(kind) >= 10 for kind in kinds)
    found = prompts.load()
    assert len(questions(found)) == len(rows) and not questions(found) & measured_on()
    calibrated = texts.bundled("default.jsonl").read_text("utf-8")
    assert not any(json.dumps(row["prompt"], ensure_ascii=False) in calibrated for row in rows)
    assert all([turn["role"] for turn in messages] == ["user"] for messages in found.prompts.values())


def test_a_file_of_prompts(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    path = tmp_path / "mine.jsonl"
    path.write_text(f"{json.dumps({'prompt': 'größer?'})}\n\n{json.dumps({'messages': turns, 'id': 3})}\n", "utf-8")
    found = prompts.load(str(path))
    assert found.prompts == {"mine-001": ({"role": "user", "content": "größer?"},), "mine-003": tuple(turns)}
    assert found.source == "mine.jsonl"
    first = prompts.load(str(path), limit=1)
    assert list(first.prompts) == ["mine-001"] and first.sha256 != found.sha256
    assert prompts.load(str(path), embedded=True) == found, "who names a file means it"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "holds no prompt"),
        (b"\n \n", "holds no prompt"),
        (b'{"prompt": "a"}\n{"prompt": 1}\n', "bad.jsonl:2 has neither"),
        (b'{"prompt": " "}', "neither"),
        (b'["prompt"]', "neither"),
        (b'{"messages": []}', "neither"),
        (b'{"messages": [{"role": "assistant", "content": "a"}]}', "neither"),
        (b'{"messages": [{"role": "user"}]}', "neither"),
        (b'{"prompt": ', "not valid JSON"),
        (b'{"prompt": "\xff"}', "not UTF-8"),
    ],
)
def test_files_that_are_none(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(CalibrationError, match=reason):
        prompts.load(str(path))


@pytest.mark.parametrize(("spec", "limit"), [("absent.jsonl", None), (".", None), (None, 0)])
def test_nothing_to_ask(spec: str | None, limit: int | None) -> None:
    with pytest.raises(R1QuantError) as caught:
        prompts.load(spec, limit=limit)
    assert caught.value.hint

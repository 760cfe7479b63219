"""The grader judges as a careful person would, in any thread, and whatever the text holds."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from r1quant.metrics import grading
from r1quant.metrics.grading import Grade, after_think, final_answer, grade
from r1quant.tinyr1.problems import problems

FILE = Path(__file__).parent / "data" / "tricky_answers.jsonl"
TRICKY = [json.loads(line) for line in FILE.read_text("utf-8").splitlines()]


def test_tricky_answers_are_judged_as_a_person_judged_them() -> None:
    assert len(TRICKY) >= 200
    assert len({(case["text"], case["answer"]) for case in TRICKY}) == len(TRICKY)
    assert min(sum(case["right"] for case in TRICKY), sum(not case["right"] for case in TRICKY)) > 60
    judged = [(case["why"], case["text"], grade(case["text"], case["answer"])) for case in TRICKY]
    differ = [found for case, found in zip(TRICKY, judged, strict=True) if found[2].right != case["right"]]
    assert not differ


def test_answers_vote_as_numbers() -> None:
    """What the majority is counted from: one form for one number."""
    boxes = ["042", "42.0", r"\frac{84}{2}", r"42^\circ", r"n = 42", r"\text{42}", "４２"]
    assert {grade(f"\\boxed{{{box}}}", "7") for box in boxes} == {Grade("42", False)}
    assert grade(r"\boxed{0.5}", "7").answer == grade(r"\boxed{\tfrac12}", "7").answer == "1/2"
    assert grade("\\boxed{a\n +  b}", "7").answer == "a + b"
    assert grade("none", "7") == Grade(None, False)


def test_the_reasoning_is_set_aside() -> None:
    assert after_think("a</think>b") == "b"
    assert after_think("<think>a</think>b</think>c") == "c"
    assert after_think("<think>a") is None
    assert after_think("a") == "a"
    assert after_think("a", thinking=True) is None
    assert after_think("a</think>b", thinking=True) == "b"
    assert final_answer(r"\boxed{1}", thinking=True) is None
    assert grade(r"\boxed{1}", "1", thinking=True) == Grade(None, False)


def test_every_solution_of_the_generator_is_right_and_its_neighbour_wrong() -> None:
    stream = problems(5)
    for _ in range(300):
        problem = next(stream)
        assert grade(problem.solution, str(problem.answer)) == Grade(str(problem.answer), True)
        assert not grade(problem.solution, str(problem.answer + 1)).right


def test_threads_may_grade() -> None:
    """Each expression is new, so that none is answered from memory."""
    found: dict[int, tuple[bool, bool]] = {}

    def work(n: int) -> None:
        text = f"\\boxed{{\\sqrt{{{n * n}}} + x}}"
        found[n] = grade(text, f"x + {n}").right, grade(text, f"x + {n + 1}").right

    threads = [threading.Thread(target=work, args=(n,)) for n in range(101, 113)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(101, 113), (True, False))


def test_an_endless_comparison_is_ended_and_the_next_one_works(monkeypatch: pytest.MonkeyPatch) -> None:
    assert grade(r"\boxed{\sqrt{36}+y}", "y+6").right
    monkeypatch.setattr(grading, "SECONDS", 0.5)
    before = grading._process.running
    assert before is not None
    assert not grade(r"\boxed{10^{10^{10^{10}}}+1}", "42").right
    assert before.poll() is not None
    monkeypatch.undo()
    assert grade(r"\boxed{\sqrt{49}+y}", "y+7").right


def test_a_process_that_has_died_is_started_again() -> None:
    assert grade(r"\boxed{\sqrt{64}+z}", "z+8").right
    process = grading._process.running
    assert process is not None
    process.kill()
    process.wait()
    assert grade(r"\boxed{\sqrt{100}+z}", "z+10").right


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"\boxed{" * 50_000, None),
        (r"\boxed{7}" + r"\boxed{" * 50_000, "7"),
        (r"\boxed{" * 50_000 + "7" + "}" * 50_000, "7"),
        ("{" * 50_000 + r"\boxed{7}" + r"\fbox{}" * 50_000, "7"),
        (r"\boxed{a\}b{c}}" + "}" * 50_000, r"a\}b{c}"),
    ],
    ids=["open", "one closed", "nested", "empty", "escaped"],
)
def test_a_model_that_repeats_a_box_is_graded_in_one_pass(text: str, found: str | None) -> None:
    """Looking for the end of each alone would take minutes."""
    assert final_answer(text) == found
    assert grade(text, "7").right == (found == "7")


@pytest.mark.parametrize(
    "content",
    ["\\", "\\\\", "\x00", "\ud800", "\\frac{1}{0}", "\\frac{}{}", "{{{", "}", "$", "%", "_", "^", "\\left(", "=", ",",
     "\\text{", "1/0", "9" * 190, "9" * 5000, "(" * 190, "\\sqrt[0]{0}", "\\int", "\n", "٤٢", "²",
     "a" * 190, "1e999999999"],
)  # fmt: skip
def test_nothing_raises(content: str) -> None:
    for text in (f"\\boxed{{{content}}}", content):
        for answer in ("42", content, "\\frac{1}{2}", ""):
            assert grade(text, answer).right in (True, False)
    assert not grade(f"\\boxed{{{content}}}", "42").right or content == "٤٢"

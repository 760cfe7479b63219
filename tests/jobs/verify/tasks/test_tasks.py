"""Tasks of lm-eval on real models: the scores are those that transformers gives, and they fall as bits do."""

from __future__ import annotations

import importlib.util
import json
import math
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from r1quant.arch.tables import architecture_of
from r1quant.backends import Runtime
from r1quant.checkpoint.tokenizer import Tokenizer
from r1quant.errors import CalibrationError, RecipeError
from r1quant.jobs.artifacts import open_artifact
from r1quant.jobs.runtimes import open_runtime
from r1quant.jobs.setup import Setup
from r1quant.jobs.verify import lmeval, tasks
from r1quant.jobs.verify.harness import Harness
from r1quant.jobs.verify.lmeval import TaskChoice, find, score
from r1quant.jobs.verify.options import VerifyOptions
from r1quant.jobs.verify.pair import Pair
from r1quant.jobs.verify.tasks import compare, difference
from r1quant.progress import Silent
from r1quant.records.interval import Interval
from r1quant.records.tasks import MetricDifference, ModelTasks, TaskMetric, TaskScores
from r1quant.records.writing import as_json
from tests.independent import whole_model
from tests.jobs.verify.tasks.conftest import PROBLEMS, problems

pytestmark = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")
CONTEXT = 1024


TINY = open_artifact("tiny-r1")
TOKENIZER = Tokenizer.from_files(TINY.side_files, "tiny-r1")
EOS = 1


def paired(quantized: str | Path, folder: Path, *names: str, limit: int | None = None) -> Pair:
    options = VerifyOptions(windows=0, tasks=names, task_folder=str(folder), task_limit=limit, device="cpu")
    return Pair(TINY, open_artifact(quantized), architecture_of(TINY.config), TOKENIZER, options, ("", ""))


def opened(source: str | Path) -> Runtime:
    return open_runtime(open_artifact(source), CONTEXT, Setup("torch", "cpu", "float32"))


@pytest.fixture(scope="module")
def record(folder: Path, four_bits: Path) -> dict[str, Any]:
    return dict(as_json(compare(paired(four_bits, folder, "tiny_answers", "tiny_choices"), Silent())))


def test_both_models_are_scored(record: dict[str, Any]) -> None:
    for side in ("quantized", "baseline"):
        found = record[side]["tasks"]
        assert set(found) == {"tiny_answers", "tiny_choices"}
        assert found["tiny_answers"]["version"] == 2.0 and found["tiny_choices"]["version"] == 1.0
        assert {task["questions"] for task in found.values()} == {PROBLEMS}
        assert record[side]["truncated"] == 0 and record[side]["ignored"] == []
    json.dumps(record, allow_nan=False)


def test_answers_are_what_transformers_would_write(record: dict[str, Any]) -> None:
    """Every token of every answer is the likeliest to transformers, and the share of right ones is the score."""
    model, right = whole_model(TINY), 0
    asked = [
        f"<｜begin▁of▁sentence｜><｜User｜>{entry['problem']}\n{entry['instruction']}<｜Assistant｜>"
        for entry in problems()
    ]
    answers = Harness(opened("tiny-r1"), TOKENIZER, CONTEXT, frozenset({EOS}), max_tokens=300).generate(
        [(text, {"do_sample": False}) for text in asked]
    )
    for text, answer, entry in zip(asked, answers, problems(), strict=True):
        given, made = TOKENIZER.encode(text), [*TOKENIZER.encode(answer), EOS]
        with torch.no_grad():
            likeliest = model(torch.tensor([given + made])).logits[0].argmax(-1).tolist()
        assert likeliest[len(given) - 1 : -1] == made
        right += f"boxed{{{entry['answer']}}}" in answer
    score = record["baseline"]["tasks"]["tiny_answers"]["metrics"]["exact_match,boxed"]
    assert score["value"] == pytest.approx(right / PROBLEMS) and score["value"] > 0.5
    assert score["higher_is_better"] is True and score["stderr"] is not None


def test_choices_are_scored_by_likelihood(record: dict[str, Any]) -> None:
    model, right = whole_model(TINY), []
    for entry in problems():
        solved = f"{entry['solved']}\\boxed{{"
        scores = [likelihood(model, solved, choice)[0] for choice in entry["choices"]]
        right.append(int(np.argmax(scores)) == entry["label"])
    assert record["baseline"]["tasks"]["tiny_choices"]["metrics"]["acc"]["value"] == pytest.approx(np.mean(right))


def likelihood(model: Any, context: str, continuation: str) -> tuple[float, bool]:
    """By transformers: the whole text through the model, token by token of the continuation."""
    whole, given = TOKENIZER.encode(context + continuation), TOKENIZER.encode(context)
    with torch.no_grad():
        scores = model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    places = range(len(given), len(whole))
    total = sum(float(scores[place - 1, whole[place]]) for place in places)
    return total, all(int(scores[place - 1].argmax()) == whole[place] for place in places)


def test_likelihoods_are_those_of_transformers(four_bits: Path) -> None:
    harness, model = (
        Harness(opened(four_bits), TOKENIZER, CONTEXT, frozenset({EOS})),
        whole_model(open_artifact(four_bits)),
    )
    contexts = [str(entry["solved"]).rstrip() for entry in problems()[:2]]
    pairs = [(context, continuation) for context in contexts for continuation in ("\n\n\\boxed{12}", "12")]
    pairs.append(("12+34=", "46"))
    wanted = [likelihood(model, *pair) for pair in pairs]
    found = harness.loglikelihood(pairs)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]
    np.testing.assert_allclose([score for score, _ in found], [score for score, _ in wanted], atol=1e-3)
    text = str(problems()[0]["solved"])
    assert harness.loglikelihood_rolling([text]) == pytest.approx(
        [likelihood(model, "<｜begin▁of▁sentence｜>", text)[0]], abs=1e-2
    )


def test_the_difference_is_paired(record: dict[str, Any]) -> None:
    found = record["delta"]["tiny_answers"]["exact_match,boxed"]
    apart = [
        record[side]["tasks"]["tiny_answers"]["metrics"]["exact_match,boxed"]["value"]
        for side in ("quantized", "baseline")
    ]
    assert found["mean"] == pytest.approx(apart[0] - apart[1]) and found["questions"] == PROBLEMS
    low, high = found["ci95"]
    assert low <= found["mean"] <= high
    same = {("task", "acc"): {str(n): float(n % 2) for n in range(20)}}
    assert difference(same, same) == {
        "task": {"acc": MetricDifference(mean=0.0, questions=20, ci95=Interval(0.0, 0.0))}
    }
    assert difference(same, {}) == {}


def test_the_first_model_is_gone_when_the_second_is_opened(
    folder: Path, four_bits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[Runtime]] = []
    real = Pair.opened

    def watched(pair: Pair, which: int, context: int) -> Runtime:
        assert not any(model() for model in alive)
        runtime = real(pair, which, context)
        alive.append(weakref.ref(runtime))
        return runtime

    monkeypatch.setattr(Pair, "opened", watched)
    compare(paired(four_bits, folder, "tiny_choices", limit=1), Silent())
    assert len(alive) == 2


def test_what_is_no_number_is_none() -> None:
    """A metric of nothing is NaN to lm-eval, and what it cannot aggregate a string."""
    values = {"a,none": math.nan, "a_stderr,none": "N/A", "b,none": "", "c,none": np.float32(0.5), "c_stderr,none": 1}
    raw: dict[str, Any] = {"higher_is_better": {}, "versions": {}, "n-samples": {}, "n-shot": {}}
    found = lmeval._task("t", {**values, "d,none": math.inf, "alias": "t"}, raw).metrics
    assert {name: (part.value, part.stderr) for name, part in found.items()} == {
        "a": (None, None), "b": (None, None), "c": (0.5, 1.0), "d": (None, None),
    }  # fmt: skip
    entries = [{"doc_id": n, "metrics": ["acc"], "acc": value} for n, value in enumerate((1, math.nan, "x", 0.0, True))]
    samples = lmeval._values({"samples": {"t": entries}})
    assert samples == {("t", "acc"): {"0": 1.0, "3": 0.0, "4": 1.0}}
    delta = difference(samples, {("t", "acc"): {"0": 0.0, "1": 1.0, "3": 0.0}})
    assert delta["t"]["acc"].questions == 2 and delta["t"]["acc"].mean == 0.5
    scored = [ModelTasks({"t": TaskScores({"acc": TaskMetric(value)})}) for value in (0.5, None)]
    assert tasks._valued(delta, [scored[0]] * 2) == delta and tasks._valued(delta, scored) == {}


def test_a_limit_examples_and_the_chat_format(folder: Path, tmp_path: Path) -> None:
    """Of a task that has an example before each question."""
    task = (folder / "choices.yaml").read_text("utf-8").replace("tiny_choices", "tiny_examples")
    (tmp_path / "examples.yaml").write_text(f"{task}num_fewshot: 1\n", "utf-8")
    choice = TaskChoice(("tiny_examples",), include=str(tmp_path), limit=2, chat=True, context=CONTEXT)
    scored = score(opened("tiny-r1"), TOKENIZER, frozenset({EOS}), choice, find(choice))
    one = scored.scores.tasks["tiny_examples"]
    assert one.questions == 2 and one.fewshot == 1
    assert set(scored.values[("tiny_examples", "acc")]) == {"0", "1"}


def test_an_unknown_task_is_refused_before_a_model_is_opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without lm-eval's own tasks, which take long to look through."""
    import lm_eval.tasks

    manager = lm_eval.tasks.TaskManager
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda include_path, **_: manager(None, include_path, False))
    with pytest.raises(RecipeError) as caught:
        compare(paired("tiny-r1", folder, "tiny_choises"), Silent())
    assert caught.value.message == "lm-eval has no task 'tiny_choises'"
    assert "tiny_choices" in caught.value.hint


def test_data_that_cannot_be_had_is_an_error_of_two_lines(tmp_path: Path, folder: Path) -> None:
    text = (folder / "choices.yaml").read_text("utf-8").replace("problems.jsonl", "absent.jsonl")
    (tmp_path / "choices.yaml").write_text(text, "utf-8")
    with pytest.raises(CalibrationError) as caught:
        compare(paired("tiny-r1", tmp_path, "tiny_choices"), Silent())
    assert caught.value.message.startswith("the tasks tiny_choices cannot be loaded: ")
    assert "\n" not in caught.value.message and "network" in caught.value.hint


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"names": ()}, "no task is named"),
        ({"names": ("a", "")}, "no task is named"),
        ({"names": ("a",), "limit": 0}, "limit is 0"),
        ({"names": ("a",), "include": "absent"}, "absent is not a folder"),
    ],
)
def test_choices_that_cannot_be(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(RecipeError, match=reason):
        TaskChoice(**options)


def test_a_folder_is_enough(folder: Path) -> None:
    """Where a folder has all the tasks, lm-eval's own are not looked through."""
    assert find(TaskChoice(("tiny_choices",), include=str(folder))).all_tasks == ["tiny_answers", "tiny_choices"]

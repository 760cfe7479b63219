"""Asks both models the same problems with the same luck, grades the answers, and looks at how they came about.

Every answer is stored as it arrives, under the hash of all that decides it: an interrupted run goes on, and one
baseline serves many quantized models.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from r1quant.backends import Prompt, Sampling
from r1quant.data import problemsets
from r1quant.data.problemsets import HealthPrompt, Problem
from r1quant.jobs.generate.samples import Sample, Samples, collect, prompt_for
from r1quant.jobs.verify.options import VerifyOptions
from r1quant.jobs.verify.pair import Pair
from r1quant.metrics import accuracy, grading, health
from r1quant.progress import Progress
from r1quant.storage.cache import cache_folder

SIDES = ("baseline", "quantized")


def measure(pair: Pair, progress: Progress) -> dict[str, Any]:
    """What the record has of answers: `aime`, and `health`."""
    options = pair.options
    found: dict[str, Any] = {}
    if options.aime is not None:
        found |= _problems(pair, progress)
    if options.health:
        prompts = problemsets.health_prompts()
        answers = [_ask(pair, side, prompts, 1, progress) for side in (0, 1)]
        found.setdefault("health", {})["formats"] = _formats(prompts, answers, pair.thinking)
    return found


def shape(options: VerifyOptions) -> dict[str, Any]:
    """The numbers that a record will have, all of them made up."""
    right = np.array([[True], [False]])
    told = [health.ModelSummary(prompt, "<think>2</think>2", 4, True, True) for prompt in ("1 + 1", "4 - 2")]
    found: dict[str, Any] = {}
    if options.aime is not None:
        marks = [[("1", True)], [("2", False)]]
        found = {"aime": _scores([right, right], [marks, marks]), "health": health.compare(told, told)}
    if options.health:
        prompts = problemsets.health_prompts()
        blank = [[Sample(prompt.key, "", 0, True)] for prompt in prompts]
        found.setdefault("health", {})["formats"] = _formats(prompts, [blank, blank], False)
    return found


def _problems(pair: Pair, progress: Progress) -> dict[str, Any]:
    options, problems = pair.options, pair.problems
    asked = problems.problems
    answers = [_ask(pair, side, asked, options.samples, progress) for side in (0, 1)]
    graded = [_graded(asked, of, pair.thinking) for of in answers]
    right = [np.array([[ok for _, ok in marks] for marks in of]) for of in graded]
    counts = [[[sample.count for sample in samples] for samples in of] for of in answers]
    table = [
        {
            "key": problem.key,
            "answer": problem.answer,
            "baseline": int(a.sum()),
            "quantized": int(b.sum()),
            "tokens": dict(zip(SIDES, lengths, strict=True)),
        }
        for problem, a, b, *lengths in zip(asked, *right, *counts, strict=True)
    ]
    sampling = {key: getattr(options, key) for key in ("temperature", "top_p", "max_tokens", "seed")}
    named = {"set": problems.name, "source": problems.source, "sha256": problems.sha256, "sampling": sampling}
    told = [list(_told(asked, of, marks)) for of, marks in zip(answers, graded, strict=True)]
    return {"aime": {**named, **_scores(right, graded), "table": table}, "health": health.compare(*told)}


Answers = Sequence[Sequence[Sample]]  # [problems, samples]
Graded = Sequence[Sequence[tuple[str | None, bool]]]  # [problems, samples]: an answer, and whether it is right


def _graded(asked: Sequence[Problem], answers: Answers, thinking: bool) -> Graded:
    marks = []
    for problem, samples in zip(asked, answers, strict=True):
        grades = [grading.grade(sample.text, problem.answer, thinking) for sample in samples]
        marks.append([(grade.answer, grade.right) for grade in grades])
    return marks


def _told(asked: Sequence[Problem], answers: Answers, graded: Graded) -> Iterator[health.ModelSummary]:
    for problem, samples, marks in zip(asked, answers, graded, strict=True):
        for sample, (answer, _) in zip(samples, marks, strict=True):
            yield health.ModelSummary(problem.question, sample.text, sample.count, sample.finished, answer is not None)


def _scores(right: Sequence[accuracy.Right], graded: Sequence[Graded]) -> dict[str, Any]:
    both = {
        side: accuracy.summary(ok, [[answer for answer, _ in marks] for marks in given])
        for side, ok, given in zip(SIDES, right, graded, strict=True)
    }
    return {"problems": len(right[0]), "samples": right[0].shape[1], **both, **accuracy.pair(*right)}


def _formats(prompts: Sequence[HealthPrompt], answers: Sequence[Answers], thinking: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for side, given in zip(SIDES, answers, strict=True):
        valid: dict[str, list[bool]] = {"json": [], "call": []}
        for prompt, (sample,) in zip(prompts, given, strict=True):
            if prompt.kind == "json":
                valid["json"].append(health.valid_json(sample.text, prompt.schema, thinking))
            else:
                valid["call"].append(health.valid_call(sample.text, prompt.tools, thinking))
        found[side] = {"json_valid": float(np.mean(valid["json"])), "tool_call_valid": float(np.mean(valid["call"]))}
    return found


def _ask(
    pair: Pair,
    side: int,
    asked: Sequence[Problem | HealthPrompt],
    samples: int,
    progress: Progress,
) -> list[list[Sample]]:
    """`samples` answers of one model to each, from the store or from the model, which is opened only if need be."""
    options = pair.options
    sampling = Sampling(options.temperature, options.top_p, options.max_tokens)
    prompts = [_prompt(pair, each, number) for each in asked for number in range(samples)]
    identity = _identity(pair, side)
    have = Samples.peek(cache_folder(), identity)
    if any(prompt.key not in have for prompt in prompts):
        answers = {
            prompt.key: each.answer
            for prompt, each in zip(prompts, (each for each in asked for _ in range(samples)), strict=True)
            if isinstance(each, Problem)
        }
        context = max(len(prompt.tokens) for prompt in prompts) + options.max_tokens
        with Samples.open(cache_folder(), identity) as store:
            runtime = pair.opened(side, min(context, _limit(pair)), answers, progress.note)
            collect(runtime, prompts, sampling, pair.stop, store, pair.tokenizer.decode, progress)
            have = store.have
        if changed := getattr(runtime, "retemplated", 0):
            progress.note(f"the server's chat template or tokenizer makes other tokens of {changed} prompts")
    found = [have[prompt.key] for prompt in prompts]
    return [found[start : start + samples] for start in range(0, len(found), samples)]


def _prompt(pair: Pair, each: Problem | HealthPrompt, number: int) -> Prompt:
    """One question, asked for the number-th time. Both models draw with the same seed."""
    return prompt_for(pair.tokenizer, each.key, problemsets.messages(each), number, pair.options.seed)


def _limit(pair: Pair) -> int:
    return int(pair.baseline.config.get("max_position_embeddings", 1 << 20))


def _identity(pair: Pair, side: int) -> Mapping[str, str]:
    """All that decides an answer but for the prompt, which the key tells."""
    options = pair.options
    sampling = [options.temperature, options.top_p, options.max_tokens, options.seed]
    return pair.identity(side) | {"sampling": json.dumps(sampling), "stop": json.dumps(sorted(pair.stop))}

"""Asks both models the same problems with the same luck, grades the answers, and looks at how they came about.

Every answer is stored as it arrives, under the hash of all that decides it: an interrupted run goes on, and one
baseline serves many quantized models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from r1quant.backends import Prompt, Sampling
from r1quant.data import problemsets
from r1quant.data.problemsets import HealthPrompt, Problem
from r1quant.jobs.generate.samples import Sample, Samples, collect, prompt_for
from r1quant.jobs.verify.pair import Pair
from r1quant.metrics import accuracy, grading, health
from r1quant.metrics.health import WrittenAnswer
from r1quant.progress import Progress
from r1quant.records.answers import (
    AnswerLengths,
    FormatComparison,
    FormatShares,
    HabitComparison,
    Health,
    ProblemResult,
    ProblemScores,
    ProblemSource,
    SamplingOptions,
)
from r1quant.storage.cache import cache_folder

Answers = Sequence[Sequence[Sample]]  # [problems, samples]
BOTH = (0, 1)  # the baseline and the quantized model


@dataclass(frozen=True)
class GradedAnswers:
    """One model on all problems, each list [problems][samples]: its samples, the answers in them, which are right."""

    samples: Answers
    answers: Sequence[Sequence[str | None]]
    right: accuracy.Right


def ask(pair: Pair, progress: Progress) -> tuple[ProblemScores | None, Health]:
    """Both models on the problems, and on the prompts for JSON and function calls, as the options say."""
    scores, habits, formats = None, None, None
    if pair.options.aime is not None:
        scores, habits = _problems(pair, progress)
    if pair.options.health:
        prompts = problemsets.health_prompts()
        answers = [_ask(pair, side, prompts, 1, progress) for side in BOTH]
        formats = FormatComparison(*(_formats(prompts, given, pair.thinking) for given in answers))
    return scores, Health(habits, formats)


def _problems(pair: Pair, progress: Progress) -> tuple[ProblemScores, HabitComparison]:
    options, problems = pair.options, pair.problems
    asked = problems.problems
    both = [_graded(asked, _ask(pair, side, asked, options.samples, progress), pair.thinking) for side in BOTH]
    baseline, quantized = (accuracy.summary(graded.right, graded.answers) for graded in both)
    sampling = SamplingOptions(options.temperature, options.top_p, options.max_tokens, options.seed)
    scores = ProblemScores(
        asked=ProblemSource(problems.name, problems.source, problems.sha256, sampling),
        problems=len(asked),
        samples=options.samples,
        baseline=baseline,
        quantized=quantized,
        difference=accuracy.difference(*(graded.right for graded in both)),
        table=_table(asked, *both),
    )
    return scores, health.compare(*(_written(asked, graded) for graded in both))


def _table(asked: Sequence[Problem], baseline: GradedAnswers, quantized: GradedAnswers) -> tuple[ProblemResult, ...]:
    rows = []
    for place, problem in enumerate(asked):
        lengths = [tuple(sample.count for sample in graded.samples[place]) for graded in (baseline, quantized)]
        row = ProblemResult(
            key=problem.key,
            answer=problem.answer,
            baseline=int(baseline.right[place].sum()),
            quantized=int(quantized.right[place].sum()),
            tokens=AnswerLengths(*lengths),
        )
        rows.append(row)
    return tuple(rows)


def _graded(asked: Sequence[Problem], answers: Answers, thinking: bool) -> GradedAnswers:
    grades = [
        [grading.grade(sample.text, problem.answer, thinking) for sample in samples]
        for problem, samples in zip(asked, answers, strict=True)
    ]
    return GradedAnswers(
        samples=answers,
        answers=[[grade.answer for grade in of_problem] for of_problem in grades],
        right=np.array([[grade.right for grade in of_problem] for of_problem in grades]),
    )


def _written(asked: Sequence[Problem], graded: GradedAnswers) -> list[WrittenAnswer]:
    """All samples of all problems, as `health` looks at them."""
    return [
        WrittenAnswer(problem.question, sample.text, sample.count, sample.finished, answer is not None)
        for problem, samples, answers in zip(asked, graded.samples, graded.answers, strict=True)
        for sample, answer in zip(samples, answers, strict=True)
    ]


def _formats(prompts: Sequence[HealthPrompt], answers: Answers, thinking: bool) -> FormatShares:
    valid: dict[str, list[bool]] = {"json": [], "call": []}
    for prompt, (sample,) in zip(prompts, answers, strict=True):
        if prompt.kind == "json":
            valid["json"].append(health.valid_json(sample.text, prompt.schema, thinking))
        else:
            valid["call"].append(health.valid_call(sample.text, prompt.tools, thinking))
    return FormatShares(float(np.mean(valid["json"])), float(np.mean(valid["call"])))


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
    prompts = [_prompt(pair, question, number) for question in asked for number in range(samples)]
    identity = _identity(pair, side)
    stored = Samples.peek(cache_folder(), identity)
    if any(prompt.key not in stored for prompt in prompts):
        repeated = [question for question in asked for _ in range(samples)]
        answers = {
            prompt.key: question.answer
            for prompt, question in zip(prompts, repeated, strict=True)
            if isinstance(question, Problem)
        }
        context = max(len(prompt.tokens) for prompt in prompts) + options.max_tokens
        with Samples.open(cache_folder(), identity) as store:
            runtime = pair.opened(side, min(context, _limit(pair)), answers, progress.note)
            collect(runtime, prompts, sampling, pair.stop, store, pair.tokenizer.decode, progress)
            stored = store.have
        if changed := getattr(runtime, "retemplated", 0):
            progress.note(f"the server's chat template or tokenizer makes other tokens of {changed} prompts")
    answers_of_all = [stored[prompt.key] for prompt in prompts]
    return [answers_of_all[start : start + samples] for start in range(0, len(prompts), samples)]


def _prompt(pair: Pair, question: Problem | HealthPrompt, number: int) -> Prompt:
    """One question, asked for the number-th time. Both models draw with the same seed."""
    return prompt_for(pair.tokenizer, question.key, problemsets.messages(question), number, pair.options.seed)


def _limit(pair: Pair) -> int:
    return int(pair.baseline.config.get("max_position_embeddings", 1 << 20))


def _identity(pair: Pair, side: int) -> Mapping[str, str]:
    """All that decides an answer but for the prompt, which the key tells."""
    options = pair.options
    sampling = [options.temperature, options.top_p, options.max_tokens, options.seed]
    return pair.identity(side) | {"sampling": json.dumps(sampling), "stop": json.dumps(sorted(pair.stop))}

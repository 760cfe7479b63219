"""tasks: any task of lm-eval on a quantized model and on the one it was made from, with the paired difference.

Tasks come with lm-eval or from a local folder of YAML files, which needs no network. It does not know how a task is
asked or graded: lm-eval does that.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata

import numpy as np

from r1quant.jobs.verify import lmeval
from r1quant.jobs.verify.lmeval import CONTEXT, ScoredTasks, TaskChoice, Values
from r1quant.jobs.verify.pair import Pair
from r1quant.metrics.stats import interval
from r1quant.progress import Progress
from r1quant.records.tasks import MetricDifference, ModelTasks, TaskComparison

Differences = dict[str, dict[str, MetricDifference]]  # by task, then by metric


def compare(pair: Pair, progress: Progress) -> TaskComparison:
    """The scores of both models, one after the other, and the paired difference.

    Raises MissingDependency without lm-eval, RecipeError for unknown tasks, CalibrationError if their data cannot be
    had.
    """
    choice = choice_of(pair)
    manager = lmeval.find(choice)
    progress.begin("tasks", 2)
    scored: list[ScoredTasks] = []
    for which in (0, 1):
        runtime = pair.opened(which, choice.context)
        scored.append(lmeval.score(runtime, pair.tokenizer, pair.stop, choice, manager))
        del runtime
        gc.collect()  # lm-eval's class around the model refers to itself, and would keep it beside the next one
        progress.advance(1)
    baseline, quantized = scored
    return TaskComparison(
        baseline=baseline.scores,
        quantized=quantized.scores,
        delta=_valued(difference(quantized.values, baseline.values), (baseline.scores, quantized.scores)),
        choice=asdict(choice),
        lm_eval=metadata.version("lm_eval"),
    )


def choice_of(pair: Pair) -> TaskChoice:
    """What the options of a pair ask for."""
    options = pair.options
    longest = pair.baseline.config.get("max_position_embeddings")
    return TaskChoice(
        options.tasks,
        include=options.task_folder,
        limit=options.task_limit,
        chat=options.task_chat,
        max_tokens=options.task_tokens,
        seed=options.seed,
        context=min(CONTEXT + (options.task_tokens or 0), longest if isinstance(longest, int) else CONTEXT),
    )


def difference(quantized: Values, baseline: Values) -> Differences:
    """Quantized minus baseline, question by question, with a bootstrap 95 % interval.

    Questions that one of the two has no value of are left out.
    """
    differences: Differences = {}
    for (task, metric), values in quantized.items():
        others = baseline.get((task, metric), {})
        shared = [question for question in values if question in others]
        if shared:
            changes = np.array([[values[question] - others[question]] for question in shared])
            differences.setdefault(task, {})[metric] = MetricDifference(
                mean=float(changes.mean()), questions=len(shared), ci95=interval(changes)
            )
    return differences


def _valued(differences: Mapping[str, Mapping[str, MetricDifference]], both: Sequence[ModelTasks]) -> Differences:
    """Those of metrics that both models have a value of."""

    def known(task: str, metric: str) -> bool:
        scores = [model.tasks.get(task) for model in both]
        values = [None if one is None or metric not in one.metrics else one.metrics[metric].value for one in scores]
        return None not in values

    valued = {task: {m: part for m, part in parts.items() if known(task, m)} for task, parts in differences.items()}
    return {task: parts for task, parts in valued.items() if parts}

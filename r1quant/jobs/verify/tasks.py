"""tasks: any task of lm-eval on a quantized model and on the one it was made from, with the paired difference.

Tasks come with lm-eval or from a local folder of YAML files, which needs no network. It does not know how a task is
asked or graded: lm-eval does that.
"""

from __future__ import annotations

import difflib
import gc
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from r1quant.backends import Runtime
from r1quant.checkpoint.tokenizer import Tokenizer
from r1quant.errors import CalibrationError, MissingDependency, R1QuantError, RecipeError
from r1quant.extras import missing
from r1quant.jobs.verify.harness import Harness
from r1quant.jobs.verify.pair import Pair
from r1quant.metrics.stats import interval
from r1quant.progress import Progress

BOOTSTRAPS = 1000
CONTEXT = 4096  # tokens of a question and its answer, where the model has so many positions


@dataclass(frozen=True)
class TaskChoice:
    """Which tasks, and how they are asked. Raises RecipeError for what cannot be.

    names       tasks, groups or tags of lm-eval, or of the folder `include`
    include     a folder of YAML files
    limit       so many questions of each task; None takes them all
    chat        whether questions are put in the model's chat format
    max_tokens  of an answer, over what the tasks say (too little for a model that thinks first); None leaves it to them
    context     the most tokens of a question and its answer
    """

    names: tuple[str, ...]
    include: str | None = None
    limit: int | None = None
    chat: bool = False
    max_tokens: int | None = None
    context: int = CONTEXT
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.names or not all(self.names):
            raise RecipeError("no task is named", "name some: --tasks gsm8k,mmlu")
        if self.include is not None and not Path(self.include).is_dir():
            raise RecipeError(f"{self.include} is not a folder", "name a folder with the YAML files of tasks")
        for name, value, least in (
            ("limit", self.limit, 1),
            ("max-tokens", self.max_tokens, 1),
            ("context", self.context, 2),
            ("seed", self.seed, 0),
        ):
            if value is not None and value < least:
                raise RecipeError(f"{name} is {value}", f"give at least {least}")


def compare(pair: Pair, progress: Progress) -> dict[str, Any]:
    """The scores of both models, one after the other, and the paired difference.

    Raises MissingDependency without lm-eval, RecipeError for unknown tasks, CalibrationError where their data cannot
    be had.
    """
    choice = choice_of(pair)
    known = find(choice)
    progress.begin("tasks", 2)
    scored, samples = [], []
    for which in (0, 1):
        one, its = score(pair.opened(which, choice.context), pair.tokenizer, pair.stop, choice, known)
        gc.collect()  # lm-eval's class around the model refers to itself, and would keep it beside the next one
        scored.append(one)
        samples.append(its)
        progress.advance(1)
    return {
        "baseline": scored[0],
        "quantized": scored[1],
        "delta": _valued(difference(samples[1], samples[0]), scored),
        "choice": asdict(choice),
        "lm_eval": metadata.version("lm_eval"),
    }


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


@cache
def find(choice: TaskChoice) -> Any:
    """lm-eval's TaskManager with these tasks in it, before a model is opened. Raises as `compare`.

    Its thousands of own tasks are looked through only for those that the folder does not have: that takes a while.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise missing("tasks", f"tasks need lm-eval: {error}") from None
    known: Any = None
    for own in (False, True) if choice.include is not None else (True,):
        with _quiet():
            try:
                known = TaskManager(include_path=choice.include, include_defaults=own)
            except Exception as error:  # a YAML file of the folder is anybody's
                raise _unavailable(choice, error) from None
        if all(known.match_tasks([name]) for name in choice.names):
            return known
    unknown = next(name for name in choice.names if not known.match_tasks([name]))
    near = difflib.get_close_matches(unknown, known.all_tasks, 3)
    hint = f"did you mean {' or '.join(near)}?" if near else "lm-eval ls tasks names them all"
    raise RecipeError(f"lm-eval has no task {unknown!r}", hint)


Samples = dict[tuple[str, str], dict[str, float]]  # by task and metric: of each question, by its number and filter


def score(
    runtime: Runtime, tokenizer: Tokenizer, stop: frozenset[int], choice: TaskChoice, known: Any
) -> tuple[dict[str, Any], Samples]:
    """The scores of one model as lm-eval gives them, and those of every question. Raises as `compare`.

    stop   the tokens that end an answer
    known  what `find` gave for this choice
    """
    import lm_eval

    harness = Harness(runtime, tokenizer, choice.context, stop, choice.max_tokens, choice.seed)
    with _quiet():
        try:
            raw = lm_eval.simple_evaluate(
                model=_model(harness, tokenizer),
                tasks=list(choice.names),
                limit=choice.limit,
                bootstrap_iters=BOOTSTRAPS,
                apply_chat_template=choice.chat,
                fewshot_as_multiturn=choice.chat,
                task_manager=known,
                random_seed=choice.seed,
                numpy_random_seed=choice.seed,
                torch_random_seed=choice.seed,
                fewshot_random_seed=choice.seed,
            )
        except R1QuantError:
            raise
        except ImportError as error:
            reason = f"a task needs a package that is not installed: {error}"
            raise MissingDependency(
                reason, f"pip install {error.name or 'lm-eval with the extras of the task'}"
            ) from None
        except Exception as error:  # lm-eval and datasets raise errors of many libraries
            if harness.asked:
                raise
            raise _unavailable(choice, error) from None
    return _scores(raw, harness), _samples(raw)


def difference(quantized: Samples, baseline: Samples) -> dict[str, dict[str, Any]]:
    """Quantized minus baseline, question by question, with a bootstrap 95 % interval: by task, then by metric.

    Questions that one of the two has no value of are left out.
    """
    found: dict[str, dict[str, Any]] = {}
    for (task, metric), values in quantized.items():
        other = baseline.get((task, metric), {})
        shared = [key for key in values if key in other]
        if not shared:
            continue
        apart = np.array([[values[key] - other[key]] for key in shared])
        bounds = interval(apart)
        found.setdefault(task, {})[metric] = {
            "mean": float(apart.mean()),
            "ci95": None if any(math.isnan(bound) for bound in bounds) else list(bounds),
            "questions": len(shared),
        }
    return found


def _valued(found: dict[str, dict[str, Any]], scored: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Only of metrics that both models have a value of."""

    def known(task: str, metric: str) -> bool:
        metrics = [one["tasks"].get(task, {}).get("metrics", {}).get(metric, {}) for one in scored]
        return all(entry.get("value") is not None for entry in metrics)

    kept = {task: {m: part for m, part in metrics.items() if known(task, m)} for task, metrics in found.items()}
    return {task: metrics for task, metrics in kept.items() if metrics}


def _model(harness: Harness, tokenizer: Tokenizer) -> Any:
    """The harness as one of lm-eval's models."""
    from lm_eval.api.model import LM

    class Model(LM):  # type: ignore[misc]  # lm-eval is not typed
        @property
        def tokenizer_name(self) -> str:
            return tokenizer.source

        def chat_template(self, chat_template: bool | str = False) -> str | None:
            return tokenizer.template if chat_template else None

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            return harness.render(chat_history, add_generation_prompt)

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            return harness.loglikelihood([request.args for request in requests])

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            return harness.loglikelihood_rolling([request.args[0] for request in requests])

        def generate_until(self, requests: list[Any]) -> list[str]:
            return harness.generate([request.args for request in requests])

    return Model()


def _unavailable(choice: TaskChoice, error: Exception) -> CalibrationError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
    return CalibrationError(
        f"the tasks {', '.join(choice.names)} cannot be loaded: {reason}",
        "check the YAML files and paths of local tasks; the others need the network once, to fetch their data",
    )


def _scores(raw: Mapping[str, Any], harness: Harness) -> dict[str, Any]:
    """Of every task and group: metrics with their standard errors, the task's version, its questions and examples."""
    results = dict(raw["results"]) | dict(raw.get("groups") or {})
    return {
        "tasks": {name: _task(name, found, raw) for name, found in results.items()},
        "truncated": harness.truncated,
        "ignored": sorted(harness.ignored),
    }


def _task(name: str, found: Mapping[str, Any], raw: Mapping[str, Any]) -> dict[str, Any]:
    metrics = {}
    for key, value in found.items():
        metric, _, filtered = key.partition(",")
        if not filtered or metric.endswith("_stderr"):
            continue
        metrics[metric if filtered == "none" else key] = {
            "value": _number(value),
            "stderr": _number(found.get(f"{metric}_stderr,{filtered}")),
            "higher_is_better": (raw["higher_is_better"].get(name) or {}).get(metric),
        }
    return {
        "metrics": metrics,
        "version": raw["versions"].get(name),
        "questions": (raw["n-samples"].get(name) or {}).get("effective"),
        "fewshot": raw["n-shot"].get(name),
    }


def _samples(raw: Mapping[str, Any]) -> Samples:
    found: Samples = {}
    for task, entries in (raw.get("samples") or {}).items():
        for entry in entries:
            filtered = entry.get("filter", "none")
            for metric in entry.get("metrics", ()):
                value = _number(entry.get(metric))
                if value is not None:
                    name = metric if filtered == "none" else f"{metric},{filtered}"
                    found.setdefault((task, name), {})[str(entry["doc_id"])] = value
    return found


def _number(value: object) -> float | None:
    """A finite number of any library; None for what is none."""
    found = float(value) if isinstance(value, Real) else math.nan
    return found if math.isfinite(found) else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without lm-eval's log and warnings: what matters of them is in the record, or an error."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)

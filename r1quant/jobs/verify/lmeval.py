"""Runs tasks of lm-eval on one model, and takes its scores out of what lm-eval gives."""

from __future__ import annotations

import difflib
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from numbers import Real
from pathlib import Path
from typing import Any

from r1quant.backends import Runtime
from r1quant.checkpoint.tokenizer import Tokenizer
from r1quant.core.json import JsonObject
from r1quant.errors import CalibrationError, MissingDependency, R1QuantError, RecipeError
from r1quant.extras import missing
from r1quant.jobs.verify.harness import Harness
from r1quant.records.tasks import ModelTasks, TaskMetric, TaskScores

BOOTSTRAPS = 1000
CONTEXT = 4096  # tokens of a question and its answer, if the model has so many positions
Values = Mapping[tuple[str, str], Mapping[str, float]]  # by task and metric: of each question, by its number


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


@dataclass(frozen=True)
class ScoredTasks:
    """The scores of one model as lm-eval gives them, and the values of every question."""

    scores: ModelTasks
    values: Values


@cache
def find(choice: TaskChoice) -> Any:
    """lm-eval's TaskManager with these tasks in it, before a model is opened. Raises as `tasks.compare`.

    Its thousands of own tasks are looked through only for those that the folder does not have: that takes a while.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise missing("tasks", f"tasks need lm-eval: {error}") from None
    manager: Any = None
    for own in (False, True) if choice.include is not None else (True,):
        with _quiet():
            try:
                manager = TaskManager(include_path=choice.include, include_defaults=own)
            except Exception as error:  # a YAML file of the folder is anybody's
                raise _unavailable(choice, error) from None
        if all(manager.match_tasks([name]) for name in choice.names):
            return manager
    unknown = next(name for name in choice.names if not manager.match_tasks([name]))
    near = difflib.get_close_matches(unknown, manager.all_tasks, 3)
    hint = f"did you mean {' or '.join(near)}?" if near else "lm-eval ls tasks names them all"
    raise RecipeError(f"lm-eval has no task {unknown!r}", hint)


def score(
    runtime: Runtime, tokenizer: Tokenizer, stop: frozenset[int], choice: TaskChoice, manager: Any
) -> ScoredTasks:
    """One model on the chosen tasks. Raises as `tasks.compare`.

    stop     the tokens that end an answer
    manager  what `find` gave for this choice
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
                task_manager=manager,
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
    return ScoredTasks(_scores(raw, harness), _values(raw))


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


def _scores(raw: JsonObject, harness: Harness) -> ModelTasks:
    """Of every task and group."""
    results = dict(raw["results"]) | dict(raw.get("groups") or {})
    return ModelTasks(
        tasks={name: _task(name, result, raw) for name, result in results.items()},
        truncated=harness.truncated,
        ignored=tuple(sorted(harness.ignored)),
    )


def _task(name: str, result: JsonObject, raw: JsonObject) -> TaskScores:
    metrics = {}
    for key, value in result.items():
        metric, _, filtered = key.partition(",")
        if not filtered or metric.endswith("_stderr"):
            continue
        metrics[_named(metric, filtered)] = TaskMetric(
            value=_number(value),
            stderr=_number(result.get(f"{metric}_stderr,{filtered}")),
            higher_is_better=(raw["higher_is_better"].get(name) or {}).get(metric),
        )
    return TaskScores(
        metrics=metrics,
        version=raw["versions"].get(name),
        questions=_count((raw["n-samples"].get(name) or {}).get("effective")),
        fewshot=_count(raw["n-shot"].get(name)),
    )


def _values(raw: JsonObject) -> Values:
    values: dict[tuple[str, str], dict[str, float]] = {}
    for task, entries in (raw.get("samples") or {}).items():
        for entry in entries:
            for metric in entry.get("metrics", ()):
                value = _number(entry.get(metric))
                if value is not None:
                    name = _named(metric, entry.get("filter", "none"))
                    values.setdefault((task, name), {})[str(entry["doc_id"])] = value
    return values


def _named(metric: str, filtered: str) -> str:
    """A metric, and the filter of lm-eval that the answers went through if there was one."""
    return metric if filtered == "none" else f"{metric},{filtered}"


def _number(value: object) -> float | None:
    """A finite number of any library; None for anything else."""
    number = float(value) if isinstance(value, Real) else math.nan
    return number if math.isfinite(number) else None


def _count(value: object) -> int | None:
    return value if isinstance(value, int) else None


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

"""What tasks of lm-eval say of two models, in lm-eval's terms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from r1quant.records.fields import Setting, Settings, stored
from r1quant.records.interval import Interval


@dataclass(frozen=True)
class TaskMetric:
    """The value of a metric and its standard error; None if lm-eval gives no finite number."""

    value: float | None = None
    stderr: float | None = None
    higher_is_better: bool | None = field(default=None, metadata=stored(measured=False))


@dataclass(frozen=True)
class TaskScores:
    """One model on one task or group: its metrics by name, the task's version, its questions and shown examples."""

    metrics: Mapping[str, TaskMetric]
    version: Setting = field(default=None, metadata=stored(measured=False))
    questions: int | None = None
    fewshot: int | None = None


@dataclass(frozen=True)
class ModelTasks:
    """One model on all tasks, by name.

    truncated  texts that lost their begin, because they were longer than the context
    ignored    settings of the tasks that no runtime has
    """

    tasks: Mapping[str, TaskScores]
    truncated: int = 0
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class MetricDifference:
    """Quantized - baseline, question by question: the mean over the questions that both have a value of."""

    mean: float
    questions: int
    ci95: Interval | None = None


@dataclass(frozen=True)
class TaskComparison:
    """delta is by task, then by metric; choice is which tasks were asked, and how."""

    baseline: ModelTasks
    quantized: ModelTasks
    delta: Mapping[str, Mapping[str, MetricDifference]]
    choice: Settings = field(default_factory=dict, metadata=stored(measured=False))
    lm_eval: str = ""

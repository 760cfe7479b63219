"""The record of a verification: how far a quantized model is from the one that it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from r1quant.records.answers import FormatComparison, HabitComparison, Health, ProblemScores
from r1quant.records.fields import Settings, stored
from r1quant.records.record import Record
from r1quant.records.tasks import TaskComparison
from r1quant.records.text import TextScores
from r1quant.records.writing import number_paths


class Part(Enum):
    """What a verification may be asked to measure, each part by itself."""

    TEXT = "text"
    PROBLEMS = "problems"
    FORMATS = "formats"
    TASKS = "tasks"

    @property
    def number_paths(self) -> tuple[str, ...]:
        """The paths of the numbers that a record has if this part was measured."""
        return PART_PATHS[self]


PART_PATHS: Mapping[Part, tuple[str, ...]] = {
    Part.TEXT: number_paths(TextScores),
    Part.PROBLEMS: number_paths(ProblemScores, "aime") + number_paths(HabitComparison, "health"),
    Part.FORMATS: number_paths(FormatComparison, "health.formats"),
    Part.TASKS: number_paths(TaskComparison, "tasks"),
}


@dataclass(frozen=True)
class GateVerdict:
    """A condition on a number of the record, that number (None if it was not measured), and whether it holds."""

    gate: str
    value: float | None
    passed: bool


@dataclass(frozen=True)
class ModelHashes:
    """Hashes of the files of both models and of the tokenizer's; empty if the record does not tell."""

    quantized: str = ""
    baseline: str = ""
    tokenizer: str = ""


@dataclass(frozen=True)
class Verification(Record):
    """What was measured, and all that is needed to measure it again. Each part is None if it was not asked for.

    model        the name of the model that was quantized
    out          the quantized model, as it was named
    baseline     the model that it is compared with, as it was named
    scores       on a text: its fields stand among those of the record
    aime         on problems
    health       how the answers came about, and whether JSON and function calls are valid
    tasks        on tasks of lm-eval
    backend      runs the quantized model, baseline_backend the baseline
    dtype        the precision of torch
    options      as VerifyOptions, without passwords in addresses
    environment  versions of packages and kind of machine
    """

    SCHEMA = "r1quant.verification/2"

    model: str = ""
    out: str = ""
    baseline: str = ""
    scores: TextScores | None = field(default=None, metadata=stored(inline=True))
    aime: ProblemScores | None = field(default=None, metadata=stored(omit=True))
    health: Health | None = field(default=None, metadata=stored(omit=True))
    tasks: TaskComparison | None = field(default=None, metadata=stored(omit=True))
    gates: tuple[GateVerdict, ...] = field(default=(), metadata=stored(measured=False))
    backend: str = ""
    baseline_backend: str = ""
    dtype: str = ""
    hashes: ModelHashes = field(default=ModelHashes(), metadata=stored(measured=False))
    options: Settings = field(default_factory=dict, metadata=stored(measured=False))
    environment: Mapping[str, str] = field(default_factory=dict, metadata=stored(measured=False))
    seconds: float | None = field(default=None, metadata=stored(measured=False))
    peak_rss_bytes: int | None = field(default=None, metadata=stored(measured=False))

    @property
    def passed(self) -> bool:
        """Whether every gate holds."""
        return all(verdict.passed for verdict in self.gates)

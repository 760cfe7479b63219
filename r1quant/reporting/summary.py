"""What a report says: the content of report.json, of which its pages and charts are made. Types, no arithmetic.

What no record has is None, or empty.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from r1quant.records.answers import AccuracyDifference, HabitComparison, LengthSummary, ModelAccuracy
from r1quant.records.bench import BenchRow, Reference
from r1quant.records.fields import stored
from r1quant.records.interval import Interval
from r1quant.records.record import Record
from r1quant.records.text import Divergence, TextScores
from r1quant.records.verification import GateVerdict
from r1quant.reporting.hardware import HardwareSummary


@dataclass(frozen=True)
class LinearLoss:
    """What one linear lost. layer: None outside of the decoder layers; predicted_kl: in nats per token."""

    name: str
    layer: int | None
    relative_loss: float
    predicted_kl: float | None


@dataclass(frozen=True)
class ProblemCounts:
    """Of one problem: how many samples each model solved."""

    key: str
    baseline: int
    quantized: int


@dataclass(frozen=True)
class PairedProblems:
    """Problems by who solved them, and McNemar's exact p-value, two-sided, for no difference."""

    both: int
    lost: int
    gained: int
    neither: int
    p_value: float


@dataclass(frozen=True)
class ProblemSummary:
    """Both models on the same problems, `samples` answers to each.

    paired          None if the record does not list the problems
    changed         the first of the problems that one model solved more often than the other
    changed_in_all  how many of these there are
    """

    set: str
    problems: int
    samples: int
    baseline: ModelAccuracy
    quantized: ModelAccuracy
    difference: AccuracyDifference = field(metadata=stored(inline=True))
    paired: PairedProblems | None
    changed: tuple[ProblemCounts, ...]
    changed_in_all: int


@dataclass(frozen=True)
class LengthHistogram:
    """Counts of answers in bins; edges in tokens, one more than there are bins."""

    edges: tuple[int, ...]
    baseline: tuple[int, ...]
    quantized: tuple[int, ...]


@dataclass(frozen=True)
class LengthComparison:
    """Lengths of answers in tokens; ratio: of the means, quantized over baseline."""

    baseline: LengthSummary
    quantized: LengthSummary
    ratio: float | None
    ratio_ci95: Interval | None
    histogram: LengthHistogram | None


@dataclass(frozen=True)
class Prediction:
    """A number that was predicted, beside what it turned out to be; unit: bytes, seconds or nats."""

    what: str
    unit: str
    predicted: float
    measured: float


@dataclass(frozen=True)
class ModelSummary:
    """What the records say of one quantized model.

    bits             of its recipe; None under a budget
    bits_per_weight  stored bits of a quantized weight, with its share of scales and zero points
    nbytes           of its files; else of its weights as the memory model has them
    speed            both models at every load, here; reference: on a card of 40 GB
    remarks          a line for each linear with which something was not as usual
    commands         how to make and measure it again
    provenance       pairs of a name and a value: hashes, recipe, text, versions
    """

    name: str
    model: str | None
    method: str | None
    format: str | None
    bits: float | None
    bits_per_weight: float | None
    nbytes: float | None = field(metadata=stored("bytes"))
    quality: TextScores | None
    gates: tuple[GateVerdict, ...]
    problems: ProblemSummary | None
    lengths: LengthComparison | None
    health: HabitComparison | None
    speed: tuple[BenchRow, ...]
    reference: tuple[Reference, ...]
    linears: tuple[LinearLoss, ...]
    remarks: tuple[str, ...]
    predictions: tuple[Prediction, ...]
    commands: tuple[str, ...]
    provenance: tuple[tuple[str, ...], ...]

    @property
    def kl(self) -> Divergence | None:
        return None if self.quality is None else self.quality.kl


@dataclass(frozen=True)
class ModelVerdict:
    """chosen: the name of the model to take; passed: whether its gates hold, None if none was set."""

    chosen: str | None
    passed: bool | None
    sentence: str


@dataclass(frozen=True)
class Summary(Record):
    """models: the names of what was quantized; hardware: None if no record has a config."""

    SCHEMA: ClassVar[str] = "r1quant.report/2"

    models: tuple[str, ...]
    verdict: ModelVerdict
    variants: tuple[ModelSummary, ...]
    hardware: HardwareSummary | None

"""What answers to problems say of two models: how many are right, and how they came about."""

from __future__ import annotations

from dataclasses import dataclass, field

from r1quant.records.fields import stored
from r1quant.records.interval import Interval


@dataclass(frozen=True)
class ModelAccuracy:
    """One model on a set of problems.

    accuracy    the mean over all samples, also called avg@k and pass@1
    majority    maj@k: the share of problems whose most frequent answer is right
    any_right   pass@k: the share of problems that one of k samples solves
    """

    accuracy: float
    majority: float = field(metadata=stored("maj"))
    any_right: float = field(metadata=stored("pass"))
    problems: int
    samples: int
    ci95: Interval | None = None


@dataclass(frozen=True)
class AccuracyDifference:
    """delta is quantized - baseline; p_value is that of the sign-flip test; smallest_detectable is the drop that the
    run would have found in 80 % of the cases. None stands for what a single problem does not tell."""

    delta: float
    p_value: float
    delta_ci95: Interval | None = None
    smallest_detectable: float | None = None


@dataclass(frozen=True)
class SamplingOptions:
    """How answers were drawn."""

    temperature: float
    top_p: float
    max_tokens: int
    seed: int


@dataclass(frozen=True)
class AnswerLengths:
    """Tokens of each answer to one problem."""

    baseline: tuple[int, ...]
    quantized: tuple[int, ...]


@dataclass(frozen=True)
class ProblemResult:
    """One problem: the right answer, and how many samples of each model are right."""

    key: str
    answer: str
    baseline: int
    quantized: int
    tokens: AnswerLengths | None = None


@dataclass(frozen=True)
class ProblemSource:
    """Which problems were asked: the name of the set, where it is from, its hash, and how answers were drawn."""

    set: str
    source: str
    sha256: str
    sampling: SamplingOptions | None = None


@dataclass(frozen=True)
class ProblemScores:
    """Both models on the same problems, `samples` answers to each."""

    asked: ProblemSource = field(metadata=stored(inline=True, measured=False))
    problems: int
    samples: int
    baseline: ModelAccuracy
    quantized: ModelAccuracy
    difference: AccuracyDifference = field(metadata=stored(inline=True))
    table: tuple[ProblemResult, ...] = field(default=(), metadata=stored(measured=False))


@dataclass(frozen=True)
class HabitShares:
    """Shares of answers, or differences of such shares.

    closed_think     the reasoning was ended
    truncated        the answer did not end by itself
    unparsed         no answer was found that can be graded
    loops            the answer ends in something said over and over
    language_mixing  it has letters of a script that neither its prompt nor mathematics has
    """

    closed_think: float
    truncated: float
    unparsed: float
    loops: float
    language_mixing: float


@dataclass(frozen=True)
class LengthSummary:
    """Of the lengths of answers, in tokens."""

    mean: float
    median: float
    max: int


@dataclass(frozen=True)
class Habits(HabitShares):
    """How the answers of one model came about."""

    length: LengthSummary


@dataclass(frozen=True)
class HabitComparison:
    """delta is quantized - baseline; length_ratio is the quotient of the mean lengths, None if the baseline wrote
    nothing to some prompt."""

    baseline: Habits
    quantized: Habits
    delta: HabitShares
    length_ratio: float | None = None
    length_ratio_ci95: Interval | None = None


@dataclass(frozen=True)
class FormatShares:
    """Shares of the bundled prompts that were answered with valid JSON, and with a valid function call."""

    json_valid: float
    tool_call_valid: float


@dataclass(frozen=True)
class FormatComparison:
    baseline: FormatShares
    quantized: FormatShares


@dataclass(frozen=True)
class Health:
    """What quantization breaks first in models that reason. Of each part None if it was not asked for."""

    habits: HabitComparison | None = field(default=None, metadata=stored(inline=True))
    formats: FormatComparison | None = field(default=None, metadata=stored(omit=True))

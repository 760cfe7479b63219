"""What a text says of two models: perplexity of each, and the divergence between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from r1quant.records.fields import stored
from r1quant.records.interval import Interval

OTHER, THINKING, ANSWER = TOKEN_CLASSES = ("other", "thinking", "answer")
POSITIONS = 4  # parts of a window of which the divergence is reported apart
EXACT = "exact"


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean negative log-likelihood; ratio is quantized / baseline. An interval is None for one window."""

    baseline: float
    quantized: float
    ratio: float
    baseline_ci95: Interval | None = None
    quantized_ci95: Interval | None = None
    ratio_ci95: Interval | None = None


@dataclass(frozen=True)
class PositionDivergence:
    """The mean divergence at the positions start..end of a window, both included; the first position is 1."""

    start: int = field(metadata=stored("from"))
    end: int = field(metadata=stored("to"))
    mean: float


@dataclass(frozen=True)
class Divergence:
    """KL(baseline || quantized) of the distributions of the next token, in nats.

    sampling_error  the standard error of the mean that comes from estimating each divergence; 0 if they are exact
    predicted       what quantization predicted from its sensitivity pass; None if it made none
    """

    mean: float
    median: float
    p99: float
    max: float
    mean_ci95: Interval | None = None
    sampling_error: float = 0.0
    by_position: tuple[PositionDivergence, ...] = field(default=(), metadata=stored(entries=POSITIONS))
    predicted: float | None = None


@dataclass(frozen=True)
class ClassPerplexity:
    """As `Perplexity`, of one class of tokens."""

    baseline: float
    quantized: float


@dataclass(frozen=True)
class ClassDivergence:
    """As `Divergence`, of one class of tokens."""

    mean: float


@dataclass(frozen=True)
class ClassScores:
    """Tokens of one class: inside `<think>`, in the answer after it, or other."""

    tokens: int
    perplexity: ClassPerplexity
    kl: ClassDivergence | None = None
    top1: float | None = None


@dataclass(frozen=True)
class TextSource:
    """The text: where it is from, its hash, its windows and their length in tokens.

    baseline_cached: whether the baseline's predictions were at hand from an earlier run.
    """

    source: str
    sha256: str
    windows: int
    seq_len: int
    baseline_cached: bool = False


@dataclass(frozen=True)
class TextScores:
    """Both models on the same windows of text.

    tokens       that were predicted
    kl, top1     None if a server gives no distributions; top1 is the share of tokens of which both models find the
                 same one likeliest
    delta_p_rms  root mean square of the change of the probability of the token that came
    """

    tokens: int
    perplexity: Perplexity
    delta_p_rms: float
    kl: Divergence | None = None
    top1: float | None = None
    top1_ci95: Interval | None = None
    by_class: Mapping[str, ClassScores] = field(default_factory=dict, metadata=stored(keys=TOKEN_CLASSES))
    kl_estimator: str = EXACT
    text: TextSource | None = field(default=None, metadata=stored(measured=False))

"""What bench measures: how fast a model and the one it was made from run, and how much memory they take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from r1quant.records.fields import Settings, stored
from r1quant.records.record import Record

SIDES = ("baseline", "quantized")
ABOUT = stored(measured=False)  # what was run, and on what


@dataclass(frozen=True)
class Spread:
    """Of one figure over repeats."""

    median: float
    min: float
    max: float


@dataclass(frozen=True)
class Speeds:
    """The speed of one batch of texts, or the ratio of two. A figure is None if a runtime did not tell what it needs.

    ttft_seconds                     time to first token, median over texts
    prefill_tokens_per_second        prompt tokens of all texts, in the time in which any text waited for its first
    decode_tokens_per_second         tokens after the first of all texts, in the time in which any was being written
    decode_tokens_per_second_a_text  the same of one text, median over texts
    tokens_per_second                new tokens of all texts, from the start to the end of the batch
    """

    ttft_seconds: Spread | None = None
    prefill_tokens_per_second: Spread | None = None
    decode_tokens_per_second: Spread | None = None
    decode_tokens_per_second_a_text: Spread | None = None
    tokens_per_second: Spread | None = None


@dataclass(frozen=True)
class Latencies:
    """Percentiles of the seconds between two tokens of a text."""

    latency_p50_seconds: Spread | None = None
    latency_p90_seconds: Spread | None = None
    latency_p99_seconds: Spread | None = None


@dataclass(frozen=True)
class BenchCard:
    """A graphics card as its driver describes it."""

    name: str
    memory_bytes: int


@dataclass(frozen=True)
class Timing:
    """One model at one load.

    peak_memory_bytes  of the card if the model ran on one, else of the process
    memory             what kind of memory that is: torch, nvml or rss; None if it is not known
    empty_rss_bytes    of the process before it had the model
    resident           whether all weights were in memory; None if the runtime does not say
    slots              the most texts that ran at the same time; None if the runtime does not say
    """

    speeds: Speeds = field(metadata=stored(inline=True))
    latencies: Latencies = field(metadata=stored(inline=True))
    peak_memory_bytes: int | None
    memory: str | None
    peak_rss_bytes: int | None
    empty_rss_bytes: int | None
    peak_torch_bytes: int | None
    nvml_bytes: int | None
    new_tokens_made: int | None
    backend: str
    device: str | None
    dtype: str | None
    card: BenchCard | None = field(metadata=ABOUT)
    resident: bool | None
    slots: int | None


@dataclass(frozen=True)
class BenchRow:
    """Both models at one load: `batch` texts at the same time, so many tokens in and out of each.

    baseline  None if only one model was measured
    ratio     quantized over baseline, repeat by repeat
    turns     whether the two took turns; None if there was one
    """

    prompt_tokens: int = field(metadata=ABOUT)
    new_tokens: int = field(metadata=ABOUT)
    batch: int = field(metadata=ABOUT)
    quantized: Timing
    baseline: Timing | None = None
    ratio: Speeds | None = None
    turns: bool | None = None

    @property
    def load(self) -> tuple[int, int, int]:
        """What tells one row from another."""
        return self.prompt_tokens, self.new_tokens, self.batch


@dataclass(frozen=True)
class ReferenceSpeed:
    """One model at one load on the reference card. What only a model of the card knows is None if it was measured."""

    source: str
    ttft_seconds: float | None
    prefill_tokens_per_second: float | None
    decode_tokens_per_second: float | None
    total_bytes: int | None
    card: str | None = field(default=None, metadata=stored(omit=True))
    dtype: str | None = field(default=None, metadata=stored(omit=True))
    gpus: int | None = field(default=None, metadata=stored(omit=True))
    weights_bytes: int | None = field(default=None, metadata=stored(omit=True))
    kv_bytes: int | None = field(default=None, metadata=stored(omit=True))
    activation_bytes: int | None = field(default=None, metadata=stored(omit=True))
    runtime_bytes: int | None = field(default=None, metadata=stored(omit=True))
    usable_bytes: int | None = field(default=None, metadata=stored(omit=True))
    fits: bool | None = field(default=None, metadata=stored(omit=True))
    max_context: int | None = field(default=None, metadata=stored(omit=True))
    max_batch: int | None = field(default=None, metadata=stored(omit=True))


@dataclass(frozen=True)
class ReferenceRow:
    """Both models at one load on the reference card."""

    prompt_tokens: int
    new_tokens: int
    batch: int
    baseline: ReferenceSpeed
    quantized: ReferenceSpeed

    @property
    def load(self) -> tuple[int, int, int]:
        return self.prompt_tokens, self.new_tokens, self.batch


@dataclass(frozen=True)
class Reference:
    """The 16-bit model and the quantized one on a card of 40 GB. source: measured or modelled; assumptions: of a
    model of the card, by name."""

    card: str
    source: str
    dtype: str | None = None
    assumptions: Mapping[str, float] | None = field(default=None, metadata=stored(omit=True))
    rows: tuple[ReferenceRow, ...] = ()

    def at(self, row: BenchRow) -> ReferenceRow | None:
        """The same load; None if there is none."""
        return next((one for one in self.rows if one.load == row.load), None)


@dataclass(frozen=True)
class ModelSizes:
    """weights_bytes: of the files; layer_weights and head_weights: numbers in the linears of all layers, and in the
    head. They tell one model from another."""

    weights_bytes: int
    layers: int
    layer_weights: int
    head_weights: int


@dataclass(frozen=True)
class BenchMachine:
    """processor: its name; cores: that bench might use; memory_bytes: that it might fill."""

    processor: str
    cores: int
    memory_bytes: int


@dataclass(frozen=True)
class BenchText:
    """The text that prompts are cut from."""

    source: str
    sha256: str


@dataclass(frozen=True)
class BenchProtocol:
    """How it was measured. order: alone, in turn, or in turn where memory holds both."""

    repeats: int
    warm_up: int
    order: str
    temperature: float = 0.0
    text: BenchText | None = None


@dataclass(frozen=True)
class Bench(Record):
    """The record of bench.

    out       what was measured, in which format; model: what that was made from, None if there was no baseline
    hashes    of the files, by side: only `quantized`
    rows      a row for each load; the four figures before them are the medians of the first, quantized
    sizes     of each model that was measured, by side
    """

    SCHEMA: ClassVar[str] = "r1quant.bench/1"

    out: str = ""
    format: str | None = None
    model: str | None = None
    hashes: Mapping[str, str] = field(default_factory=dict)
    prefill_tokens_per_second: float | None = None
    decode_tokens_per_second: float | None = None
    ttft_seconds: float | None = None
    peak_memory_bytes: int | None = None
    rows: tuple[BenchRow, ...] = ()
    reference: Reference | None = field(default=None, metadata=ABOUT)
    sizes: Mapping[str, ModelSizes] = field(default_factory=dict, metadata=ABOUT)
    machine: BenchMachine | None = field(default=None, metadata=ABOUT)
    protocol: BenchProtocol | None = field(default=None, metadata=ABOUT)
    options: Settings = field(default_factory=dict, metadata=ABOUT)
    environment: Mapping[str, str] = field(default_factory=dict)
    seconds: float | None = field(default=None, metadata=ABOUT)

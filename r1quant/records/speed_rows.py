"""What bench measured as rows of a table, for the terminal, for a model card and for a report alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass

from r1quant.core.formatting import bytes_text, seconds_text
from r1quant.records.bench import BenchRow, Reference, ReferenceSpeed, Speeds, Spread, Timing

NONE = "–"  # of what was not measured
HEADING = ("load", "model", "prefill tok/s", "decode tok/s", "first token", "p99 gap", "peak memory", "runtime")
REFERENCE_HEADING = ("load", "model", "prefill tok/s", "decode tok/s", "first token", "memory", "source")


@dataclass(frozen=True)
class SpeedRow:
    """One model at one load, or the ratio of two. Speeds are medians with the smallest and largest of all repeats.

    gap  the 99th percentile of the time between two tokens
    """

    load: str
    model: str
    prefill: str
    decode: str
    first_token: str
    gap: str
    memory: str
    runtime: str

    @property
    def cells(self) -> tuple[str, ...]:
        """In the order of `HEADING`."""
        return astuple(self)


def speed_rows(loads: Iterable[BenchRow], name: str = "quantized") -> list[SpeedRow]:
    """Of every load the baseline, the quantized model (by its name) and the ratio of the two."""
    return [row for load in loads for row in _of_load(load, name)]


def reference_rows(reference: Reference | None, name: str = "quantized") -> list[tuple[str, ...]]:
    """The same on the reference card, in the order of `REFERENCE_HEADING`."""
    if reference is None:
        return []
    source = f"{reference.source}, {reference.card}"
    baseline = f"baseline, {reference.dtype}" if reference.dtype else "baseline"
    return [
        (load_text(*row.load), label, *_reference_cells(speed), source)
        for row in reference.rows
        for label, speed in ((baseline, row.baseline), (name, row.quantized))
    ]


def load_text(prompt_tokens: int, new_tokens: int, batch: int) -> str:
    """Tokens in and out of a text, times texts."""
    return f"({prompt_tokens:,} + {new_tokens:,}) × {batch:,}"


def runtime_text(timing: Timing) -> str:
    """What ran a model, where, and in which precision."""
    return ", ".join(filter(None, (timing.backend, timing.device, timing.dtype)))


def rate(value: float | None) -> str:
    """Whole numbers from 100 on, else three significant digits."""
    if value is None:
        return NONE
    return f"{value:,.0f}" if value >= 99.95 else f"{value:#.3g}"


def _of_load(row: BenchRow, name: str) -> Iterator[SpeedRow]:
    load = load_text(*row.load)
    if row.baseline is not None:
        yield _of_timing(load, "baseline", row.baseline)
    yield _of_timing(load, name, row.quantized)
    if row.ratio is not None:
        yield _of_ratio(load, f"{name} / baseline", row.ratio)


def _of_timing(load: str, model: str, timing: Timing) -> SpeedRow:
    speeds, gap = timing.speeds, timing.latencies.latency_p99_seconds
    peak = timing.peak_memory_bytes
    return SpeedRow(
        load,
        model,
        _spread(speeds.prefill_tokens_per_second),
        _spread(speeds.decode_tokens_per_second),
        _seconds(speeds.ttft_seconds),
        _seconds(gap),
        NONE if peak is None else " ".join(filter(None, (bytes_text(peak), timing.memory))),
        runtime_text(timing),
    )


def _of_ratio(load: str, model: str, ratio: Speeds) -> SpeedRow:
    prefill, decode = _spread(ratio.prefill_tokens_per_second), _spread(ratio.decode_tokens_per_second)
    return SpeedRow(load, model, prefill, decode, _spread(ratio.ttft_seconds), "", "", "")


def _reference_cells(speed: ReferenceSpeed) -> tuple[str, ...]:
    first, total = speed.ttft_seconds, speed.total_bytes
    short = "" if speed.fits is not False else ", does not fit"
    return (
        rate(speed.prefill_tokens_per_second),
        rate(speed.decode_tokens_per_second),
        NONE if first is None else seconds_text(first),
        NONE if total is None else bytes_text(total) + short,
    )


def _spread(spread: Spread | None) -> str:
    return NONE if spread is None else f"{rate(spread.median)} ({rate(spread.min)} .. {rate(spread.max)})"


def _seconds(spread: Spread | None) -> str:
    return NONE if spread is None else seconds_text(spread.median)

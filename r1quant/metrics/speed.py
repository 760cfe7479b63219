"""How fast texts were completed, from the moments of their tokens. Pure: it runs nothing and reads no clock.

Rates of several texts together count only the time in which at least one of them was at it: runtimes that take texts
side by side and those that take them one after the other are then compared fairly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from r1quant.records.bench import Latencies, Speeds, Spread

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Timed:
    """One text and when its tokens came.

    prompt_tokens  tokens it was given
    count          tokens it made
    moments        seconds from the start of this text to each new token, in order; from a server, to each piece that
                   came, which may be several tokens or none; empty if unknown
    ended          seconds from the start of the whole batch to the end of this text
    """

    prompt_tokens: int
    count: int
    moments: tuple[float, ...]
    ended: float

    @property
    def begun(self) -> float:
        """Seconds from the start of the batch; never negative, whatever the clocks' noise."""
        return max(0.0, self.ended - self.moments[-1])


@dataclass(frozen=True)
class Speed:
    """One batch of texts. A figure is None if the moments that it needs are not known.

    ttft_seconds                     time to first token, median over texts
    prefill_tokens_per_second        prompt tokens of all texts, in the time in which any text waited for its first
    decode_tokens_per_second         tokens after the first of all texts, in the time in which any was being written
    decode_tokens_per_second_a_text  the same of one text, median over texts
    tokens_per_second                new tokens of all texts, from the start to the end of the batch
    latency_seconds                  between two moments of a text: p50, p90, p99 over all texts
    """

    ttft_seconds: float | None
    prefill_tokens_per_second: float | None
    decode_tokens_per_second: float | None
    decode_tokens_per_second_a_text: float | None
    tokens_per_second: float
    latency_seconds: Mapping[str, float] | None


FIGURES = (
    "ttft_seconds",
    "prefill_tokens_per_second",
    "decode_tokens_per_second",
    "decode_tokens_per_second_a_text",
    "tokens_per_second",
)


def speed(texts: Sequence[Timed]) -> Speed:
    """The speed of one batch. Raises ValueError if there is no text, or moments go backwards."""
    if not texts:
        raise ValueError("no texts were timed")
    for text in texts:
        if any(np.diff(text.moments) < 0):
            raise ValueError("the moments of a text are not in order")
    overall = sum(text.count for text in texts) / max(text.ended for text in texts)
    if not all(text.moments for text in texts):
        return Speed(None, None, None, None, overall, None)
    waiting = covered((text.begun, text.begun + text.moments[0]) for text in texts)
    writing = covered((text.begun + text.moments[0], text.begun + text.moments[-1]) for text in texts)
    several = [text for text in texts if text.moments[-1] > text.moments[0]]
    gaps = np.concatenate([np.diff(text.moments) for text in texts])
    return Speed(
        ttft_seconds=float(np.median([text.moments[0] for text in texts])),
        prefill_tokens_per_second=_rate(sum(text.prompt_tokens for text in texts), waiting),
        decode_tokens_per_second=_rate(sum(text.count - 1 for text in texts), writing),
        decode_tokens_per_second_a_text=(
            float(np.median([(text.count - 1) / (text.moments[-1] - text.moments[0]) for text in several]))
            if several
            else None
        ),
        tokens_per_second=overall,
        latency_seconds=(
            {f"p{p}": float(value) for p, value in zip(PERCENTILES, np.percentile(gaps, PERCENTILES), strict=True)}
            if len(gaps)
            else None
        ),
    )


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """The length that spans (start, stop) cover together, overlaps counted once."""
    total, until = 0.0, -np.inf
    for start, stop in sorted(spans):
        if stop > until:
            total += stop - max(start, until)
            until = stop
    return float(total)


def spread(values: Iterable[float | None]) -> Spread | None:
    """Over repeats; None if any of them is not known."""
    known = list(values)
    found = [value for value in known if value is not None]
    if not found or len(found) < len(known):
        return None
    return Spread(float(np.median(found)), float(min(found)), float(max(found)))


def speeds(runs: Sequence[Speed]) -> Speeds:
    """Of the same batch measured again and again."""
    return Speeds(**{name: spread(getattr(run, name) for run in runs) for name in FIGURES})


def latencies(runs: Sequence[Speed]) -> Latencies:
    """Of the same batch measured again and again."""
    found = {}
    for name in (f"p{p}" for p in PERCENTILES):
        values = (None if run.latency_seconds is None else run.latency_seconds[name] for run in runs)
        found[f"latency_{name}_seconds"] = spread(values)
    return Latencies(**found)


def ratios(first: Sequence[Speed], second: Sequence[Speed]) -> Speeds:
    """first over second, repeat by repeat: runs taken in turn share what else the machine was doing.

    Raises ValueError if the two were not repeated equally often.
    """
    found: dict[str, Spread | None] = {}
    for name in FIGURES:
        pairs = [(getattr(a, name), getattr(b, name)) for a, b in zip(first, second, strict=True)]
        found[name] = spread(a / b if a is not None and b else None for a, b in pairs)
    return Speeds(**found)


def _rate(tokens: int, seconds: float) -> float | None:
    return tokens / seconds if tokens and seconds > 0 else None

"""Speeds from moments: by hand, for texts side by side and one after the other, and over repeats."""

from __future__ import annotations

import pytest

from r1quant.metrics.speed import FIGURES, Speed, Timed, covered, latencies, ratios, speed, speeds, spread
from r1quant.records.bench import Spread


def test_one_text_by_hand() -> None:
    found = speed([Timed(100, 5, (0.5, 0.7, 0.8, 0.9, 1.5), 1.5)])
    assert found.ttft_seconds == 0.5
    assert found.prefill_tokens_per_second == pytest.approx(100 / 0.5)
    assert found.decode_tokens_per_second == pytest.approx(4 / 1.0)
    assert found.decode_tokens_per_second_a_text == pytest.approx(4 / 1.0)
    assert found.tokens_per_second == pytest.approx(5 / 1.5)
    assert found.latency_seconds is not None
    assert found.latency_seconds["p50"] == pytest.approx(0.15)
    assert found.latency_seconds["p50"] < found.latency_seconds["p90"] < found.latency_seconds["p99"] <= 0.6


def test_side_by_side_is_faster_than_one_after_the_other() -> None:
    """Twice the same text: at the same time it is twice the rate, in a queue it is the rate of one."""
    moments = (1.0, 2.0, 3.0)
    together = speed([Timed(10, 3, moments, 3.0), Timed(10, 3, moments, 3.0)])
    queue = speed([Timed(10, 3, moments, 3.0), Timed(10, 3, moments, 6.0)])
    assert (together.prefill_tokens_per_second, queue.prefill_tokens_per_second) == (20.0, 10.0)
    assert (together.decode_tokens_per_second, queue.decode_tokens_per_second) == (2.0, 1.0)
    assert together.decode_tokens_per_second_a_text == queue.decode_tokens_per_second_a_text == 1.0
    assert (together.tokens_per_second, queue.tokens_per_second) == (2.0, 1.0)


def test_texts_whose_clock_began_with_the_batch() -> None:
    """A runtime that reads prompts one after the other and counts every text's moments from the batch's begin."""
    found = speed([Timed(10, 2, (1.0, 3.0), 3.0), Timed(10, 2, (2.0, 3.0), 3.0)])
    assert found.prefill_tokens_per_second == pytest.approx(20 / 2.0)
    assert found.ttft_seconds == 1.5
    assert found.decode_tokens_per_second == pytest.approx(2 / 2.0)


def test_a_server_that_sends_several_tokens_at_once() -> None:
    found = speed([Timed(10, 9, (1.0, 2.0, 3.0), 3.0)])
    assert found.decode_tokens_per_second == found.decode_tokens_per_second_a_text == pytest.approx(8 / 2.0)
    assert found.latency_seconds == {"p50": 1.0, "p90": 1.0, "p99": 1.0}


def test_what_is_unknown_is_none() -> None:
    found = speed([Timed(10, 4, (), 2.0), Timed(10, 4, (1.0, 1.1, 1.2, 1.3), 2.0)])
    assert found.tokens_per_second == 4.0
    assert all(getattr(found, name) is None for name in FIGURES[:-1]) and found.latency_seconds is None
    single = speed([Timed(10, 1, (0.5,), 0.5)])
    assert single.ttft_seconds == 0.5 and single.decode_tokens_per_second is None
    assert single.decode_tokens_per_second_a_text is None and single.latency_seconds is None


@pytest.mark.parametrize("texts", [[], [Timed(1, 2, (0.2, 0.1), 1.0)]], ids=["none", "backwards"])
def test_what_makes_no_sense_is_refused(texts: list[Timed]) -> None:
    with pytest.raises(ValueError):
        speed(texts)


def test_covered() -> None:
    assert covered([(0, 1), (2, 4), (3, 5), (3.5, 4)]) == 4.0
    assert covered([(0, 10), (1, 2)]) == 10.0
    assert covered([]) == 0.0


def of(ttft: float, decode: float | None) -> Speed:
    latency = None if decode is None else {"p50": 1 / decode, "p90": 1 / decode, "p99": 1 / decode}
    return Speed(ttft, 10 / ttft, decode, decode, 1.0, latency)


def test_over_repeats() -> None:
    runs = [of(1.0, 4.0), of(3.0, 5.0), of(2.0, 8.0)]
    assert speeds(runs).ttft_seconds == Spread(2.0, 1.0, 3.0)
    assert latencies(runs).latency_p99_seconds == Spread(0.2, 0.125, 0.25)
    assert set(FIGURES) == set(vars(speeds(runs)))
    assert speeds([of(1.0, 4.0), of(3.0, None)]).decode_tokens_per_second is None
    assert latencies([of(1.0, 4.0), of(3.0, None)]).latency_p99_seconds is None
    assert spread([]) is None


def test_ratios_are_paired() -> None:
    """A machine that slows both down by half between repeats leaves the ratio as it was."""
    a, b = [of(1.0, 8.0), of(2.0, 4.0)], [of(2.0, 4.0), of(4.0, 2.0)]
    assert ratios(a, b).decode_tokens_per_second == Spread(2.0, 2.0, 2.0)
    assert ratios(a, b).ttft_seconds == Spread(0.5, 0.5, 0.5)
    assert ratios([of(1.0, None)], [of(1.0, 2.0)]).decode_tokens_per_second is None
    with pytest.raises(ValueError):
        ratios(a, b[:1])

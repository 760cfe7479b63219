"""What bench measured as rows: the figures of the record, the same for every reader."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from r1quant.records.bench import Bench
from r1quant.records.speed_rows import HEADING, NONE, REFERENCE_HEADING, rate, reference_rows, speed_rows

RECORDS = Path(__file__).parents[2] / "reports" / "tiny-r1" / "records"


@pytest.fixture
def record() -> Bench:
    return Bench.from_json(json.loads((RECORDS / "4-bench.json").read_text("utf-8")))


def test_rows_have_the_figures_of_the_record(record: Bench) -> None:
    baseline, quantized, ratio = speed_rows(record.rows, "w4")
    assert (baseline.model, quantized.model, ratio.model) == ("baseline", "w4", "w4 / baseline")
    assert baseline.load == "(128 + 32) × 1" and len(baseline.cells) == len(HEADING)
    assert record.decode_tokens_per_second is not None and 334 < record.decode_tokens_per_second < 335
    assert quantized.decode == "334 (324 .. 338)" and quantized.first_token == "9.45 ms"
    assert quantized.memory == "420 MB rss" and quantized.runtime == "torch, cpu, bfloat16"
    assert ratio.decode == "0.994 (0.987 .. 1.01)" and ratio.memory == ratio.runtime == ""


def test_rows_of_the_reference_card_say_that_they_are_modelled(record: Bench) -> None:
    baseline, quantized = reference_rows(record.reference, "w4")
    assert len(baseline) == len(quantized) == len(REFERENCE_HEADING)
    assert baseline[1] == "baseline, float16" and quantized[1] == "w4"
    assert baseline[-1] == quantized[-1] == "modelled, A100 40GB"
    assert baseline[2:4] == ("1,518,827", "11,830")
    assert reference_rows(None) == []


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, NONE), (0.0, "0.00"), (1.5, "1.50"), (99.96, "100"), (13540.3, "13,540")],
)
def test_rates_are_whole_or_have_three_digits(value: float | None, text: str) -> None:
    assert rate(value) == text

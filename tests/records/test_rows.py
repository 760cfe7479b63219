"""The rows of a comparison: every number of a record that people read, in the order of the record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from r1quant.records.interval import Interval
from r1quant.records.rows import HEADING, between, comparison_rows, gate_rows, measured_on, percent, remarks
from r1quant.records.tasks import MetricDifference, ModelTasks, TaskComparison, TaskMetric, TaskScores
from r1quant.records.text import Perplexity, TextScores
from r1quant.records.verification import GateVerdict, Verification

RECORDS = Path(__file__).parents[2] / "reports/tiny-r1/records"


@pytest.fixture
def record() -> Verification:
    return Verification.from_json(json.loads((RECORDS / "3-verify.json").read_text("utf-8")))


def test_every_part_that_was_measured_has_rows(record: Verification) -> None:
    rows = {row.label: row for row in comparison_rows(record)}
    assert len(rows) == len(comparison_rows(record))
    assert all(len(row.cells) == len(HEADING) for row in rows.values())
    scores, aime, health = record.scores, record.aime, record.health
    assert scores is not None and scores.kl is not None and scores.kl.mean_ci95 is not None
    assert aime is not None and aime.difference.delta_ci95 is not None
    assert health is not None and health.habits is not None
    low, high = scores.kl.mean_ci95
    assert rows["KL divergence, mean (nats)"].cells[3:] == (f"{scores.kl.mean:.6f}", f"{low:.6f} .. {high:.6f}")
    assert rows["perplexity"].baseline == f"{scores.perplexity.baseline:.4f}"
    assert rows["KL divergence, thinking tokens"].difference
    accuracy = rows["accuracy on mini, mean of 1"]
    assert accuracy.quantized == percent(aime.quantized.accuracy)
    assert accuracy.interval == between(aime.difference.delta_ci95, "+.1f", 100, " %")
    assert rows["closes </think>"].baseline == percent(health.habits.baseline.closed_think)
    assert rows["tokens of an answer, mean"].difference.startswith("× ")
    assert measured_on(record) == [
        "6132 tokens of the chains of calib/verify.jsonl",
        "60 problems of mini, 1 answer each",
    ]
    (line,) = remarks(record)
    assert line.startswith("accuracy: p = ") and "could have found a drop of" in line


def test_what_was_not_measured_has_no_rows_and_what_is_not_known_no_cells() -> None:
    assert comparison_rows(Verification()) == [] == measured_on(Verification()) == remarks(Verification())
    server = TextScores(9, Perplexity(2.0, 3.0, 1.5), 0.1, kl_estimator="none: a server gives no distributions")
    rows = comparison_rows(Verification(scores=server))
    assert [row.label for row in rows] == ["perplexity", "perplexity, ratio", "change of probability, RMS"]
    assert rows[1].cells == ("perplexity, ratio", "", "", "1.5000", "")
    assert remarks(Verification(scores=server)) == ["KL divergence: none: a server gives no distributions"]


def test_tasks_and_gates() -> None:
    models = [ModelTasks({"gsm8k": TaskScores({"exact_match": TaskMetric(value)})}) for value in (0.5, 0.25)]
    delta = {
        "gsm8k": {"exact_match": MetricDifference(-0.25, 8, Interval(-0.5, 0.0)), "lost": MetricDifference(0.0, 1)}
    }
    rows = comparison_rows(Verification(tasks=TaskComparison(models[0], models[1], delta)))
    assert rows[0].cells == ("gsm8k, exact_match", "0.5000", "0.2500", "-0.2500", "-0.5000 .. +0.0000")
    assert rows[1].cells == ("gsm8k, lost", "", "", "+0.0000", "")
    verdicts = (GateVerdict("kl.mean<1", 0.25, True), GateVerdict("top1.low>1", None, False))
    assert gate_rows(verdicts) == [("kl.mean<1", "0.25", True), ("top1.low>1", "not measured", False)]

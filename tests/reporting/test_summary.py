"""From records to numbers: what belongs together, what is said of it, and what is left out."""

from __future__ import annotations

import itertools
import json
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1quant.jobs.report.hardware import BASELINE, hardware
from r1quant.reporting import paired, untrusted
from r1quant.reporting.sections import document
from r1quant.reporting.summary import summary
from r1quant.reporting.variants import gathered
from tests.models import config
from tests.reporting import records


def told(*found: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    return summary(gathered(found), None, {})


@settings(deadline=None)
@given(st.integers(0, 6), st.integers(0, 6))
def test_mcnemar_is_the_share_of_coin_flips_that_are_as_uneven(lost: int, gained: int) -> None:
    """Independently: every one of the 2**n ways to flip, counted."""
    flips = list(itertools.product((0, 1), repeat=lost + gained))
    uneven = abs(lost - gained)
    extreme = sum(abs(2 * sum(flip) - len(flip)) >= uneven for flip in flips)
    assert paired.mcnemar(lost, gained) == pytest.approx(float(Fraction(extreme, len(flips))))


def test_mcnemar_of_many_problems_neither_overflows_nor_vanishes() -> None:
    assert paired.mcnemar(5000, 5000) == 1.0
    assert 0 < paired.mcnemar(400, 600) < 1e-9


def test_the_paired_table_counts_problems_that_most_samples_solve() -> None:
    found = paired.problems(records.verification())
    assert found is not None
    assert found["paired"] == {"both": 1, "lost": 1, "gained": 1, "neither": 1, "p_value": 1.0}
    assert [row["key"] for row in found["changed"]] == ["b", "c", "d"] and found["changed_in_all"] == 3


def test_every_length_is_in_one_bin_of_the_histogram() -> None:
    found = paired.lengths(records.verification())
    assert found is not None and found["histogram"] is not None
    bins, edges = found["histogram"], found["histogram"]["edges"]
    assert sum(bins["baseline"]) == sum(bins["quantized"]) == 8
    assert edges[-1] > 59 and len(edges) == len(bins["baseline"]) + 1
    assert bins["baseline"][10 // edges[1]] == 4 and bins["quantized"][59 // edges[1]] == 4


def test_records_of_one_output_are_one_variant_wherever_they_were_written() -> None:
    found = gathered(records.everything(4, 2))
    assert [(each.name, len(each.verified), len(each.benched)) for each in found] == [
        ("tiny-4", 1, 1),
        ("tiny-2", 1, 1),
    ]
    again = gathered([*records.everything(4), *records.everything(4), ("tiny-4", records.quantization(4))])
    assert [(each.name, len(each.verified), len(each.benched)) for each in again] == [("tiny-4", 1, 1)]


def test_the_smallest_variant_that_passes_is_recommended() -> None:
    found = told(*records.everything(8, 4, 2))["verdict"]
    assert (found["chosen"], found["passed"]) == ("tiny-4", True) and found["sentence"].startswith("Use tiny-4")


def test_where_none_passes_the_closest_is_named_with_what_it_fails() -> None:
    found = told(*records.everything(2))["verdict"]
    assert (found["chosen"], found["passed"]) == ("tiny-2", False)
    assert "kl.mean<0.005 is 0.0200" in found["sentence"] and "--guided" in found["sentence"]


def test_without_gates_the_sentence_says_how_to_set_one() -> None:
    found = told(("f", records.verification(4)))["verdict"]
    assert found["passed"] is None and "--gate" in found["sentence"]
    assert told()["verdict"]["chosen"] is None


def test_predictions_stand_beside_what_was_measured() -> None:
    each = told(*records.everything(4))["variants"][0]
    assert {row["what"]: (row["predicted"], row["measured"]) for row in each["predictions"]} == {
        "files of the quantized model": (400_000, 400_000),
        "peak memory of quantizing": (700_000_000, 800_000_000),
        "time of quantizing": (10.0, 12.0),
        "KL divergence": (1e-4, 2e-4),
    }


def test_time_and_memory_of_a_run_that_was_resumed_are_not_compared() -> None:
    resumed = records.run(4) | {"resumed_layers": 1}
    named = [row["what"] for row in told(("f", resumed))["variants"][0]["predictions"]]
    assert named == ["files of the quantized model"]


@pytest.mark.parametrize("kind", [records.run, records.verification, records.bench, records.quantization])
def test_each_kind_of_record_alone_makes_a_report_without_empty_charts(kind: Any) -> None:
    shown = document(told(("f", kind(4))))
    assert all(section.sentences or section.tables or section.charts or section.commands for section in shown.sections)
    assert all(chart.series and all(len(series.y) for series in chart.series) for chart in shown.charts)


def test_facts_are_json_and_hold_no_folder_of_the_machine() -> None:
    text = json.dumps(told(*records.everything()), allow_nan=False)
    assert "/somebody" not in text and "home" not in text


def test_hardware_has_every_variant_on_every_card_and_a_smaller_model_is_smaller() -> None:
    made = {f"tiny-{bits}": records.quantization(bits) for bits in (8, 4, 2)}
    found = hardware(config("llama"), made)
    assert found is not None
    sizes = found["weights_bytes"]
    assert sizes["tiny-2"] < sizes["tiny-4"] < sizes["tiny-8"] < sizes[BASELINE]
    cells = {(row["card"], row["name"]) for row in found["rows"]}
    assert len(cells) == len(found["rows"]) == len({card for card, _ in cells}) * 4
    baseline = found["memory"]["sides"][0]
    assert [side["name"] for side in found["memory"]["sides"]] == [BASELINE, *made]
    assert found["memory"]["contexts"][-1] == 2048
    assert baseline["kv_bytes"] == [2 * 2 * 2 * 16 * 2 * context for context in found["memory"]["contexts"]]


def test_hardware_of_a_model_that_is_not_known_is_left_out() -> None:
    assert hardware({"model_type": "unheard-of"}, {}) is None
    assert hardware(config("llama"), {"x": {"recipe": {"bits": "many"}}}) is None


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/a/b/out", "out"),
        ("../out/", "out"),
        ("C:\\models\\out", "out"),
        ("owner/name", "owner/name"),
        ("~/x", "x"),
        ("", ""),
    ],
)
def test_names_without_folders(path: str, name: str) -> None:
    assert untrusted.short(path) == name

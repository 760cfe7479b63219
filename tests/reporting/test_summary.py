"""From records to the summary: what belongs together, what is said of it, and what is left out."""

from __future__ import annotations

import itertools
import json
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1quant.arch.tables import architecture_of, linears
from r1quant.jobs.report.hardware import BASELINE, hardware
from r1quant.records.fields import Settings
from r1quant.records.quantization import ChosenBits, Quantization, QuantizeRun
from r1quant.records.verification import Verification
from r1quant.reporting import paired, untrusted
from r1quant.reporting.sections import document
from r1quant.reporting.summarize import length_comparison, problem_summary, summarize
from r1quant.reporting.summary import PairedProblems, Summary
from r1quant.reporting.variants import grouped
from tests.models import config
from tests.reporting import records


def summed(*found: tuple[str, dict[str, Any]]) -> Summary:
    return summarize(grouped(records.read(*found)), None, {})


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
    scores = Verification.from_json(records.verification()).aime
    assert scores is not None
    found = problem_summary(scores)
    assert found.paired == PairedProblems(both=1, lost=1, gained=1, neither=1, p_value=1.0)
    assert [row.key for row in found.changed] == ["b", "c", "d"] and found.changed_in_all == 3


def test_every_length_is_in_one_bin_of_the_histogram() -> None:
    found = length_comparison(Verification.from_json(records.verification()))
    assert found is not None and found.histogram is not None
    bins, edges = found.histogram, found.histogram.edges
    assert sum(bins.baseline) == sum(bins.quantized) == 8
    assert edges[-1] > 59 and len(edges) == len(bins.baseline) + 1
    assert bins.baseline[10 // edges[1]] == 4 and bins.quantized[59 // edges[1]] == 4


def test_records_of_one_output_are_one_variant_wherever_they_were_written() -> None:
    found = grouped(records.read(*records.everything(4, 2)))
    assert [(one.name, len(one.verifications), len(one.benches)) for one in found] == [
        ("tiny-4", 1, 1),
        ("tiny-2", 1, 1),
    ]
    twice = [*records.everything(4), *records.everything(4), ("tiny-4", records.quantization(4))]
    again = grouped(records.read(*twice))
    assert [(one.name, len(one.verifications), len(one.benches)) for one in again] == [("tiny-4", 1, 1)]


def test_the_smallest_variant_that_passes_is_recommended() -> None:
    found = summed(*records.everything(8, 4, 2)).verdict
    assert (found.chosen, found.passed) == ("tiny-4", True) and found.sentence.startswith("Use tiny-4")


def test_if_none_passes_the_closest_is_named_with_what_it_fails() -> None:
    found = summed(*records.everything(2)).verdict
    assert (found.chosen, found.passed) == ("tiny-2", False)
    assert "kl.mean<0.005 is 0.0200" in found.sentence and "--guided" in found.sentence


def test_without_gates_the_sentence_says_how_to_set_one() -> None:
    found = summed(("f", records.verification(4))).verdict
    assert found.passed is None and "--gate" in found.sentence
    assert summed().verdict.chosen is None


def test_predictions_stand_beside_what_was_measured() -> None:
    (model,) = summed(*records.everything(4)).variants
    assert {row.what: (row.predicted, row.measured) for row in model.predictions} == {
        "files of the quantized model": (400_000, 400_000),
        "peak memory while quantizing": (700_000_000, 800_000_000),
        "time to quantize": (10.0, 12.0),
        "KL divergence": (1e-4, 2e-4),
    }


def test_time_and_memory_of_a_run_that_was_resumed_are_not_compared() -> None:
    resumed = records.run(4) | {"resumed_layers": 1}
    names = [row.what for row in summed(("f", resumed)).variants[0].predictions]
    assert names == ["files of the quantized model"]


@pytest.mark.parametrize("kind", [records.run, records.verification, records.bench, records.quantization])
def test_each_kind_of_record_alone_makes_a_report_without_empty_charts(kind: Any) -> None:
    shown = document(summed(("f", kind(4))))
    assert all(section.sentences or section.tables or section.charts or section.commands for section in shown.sections)
    assert all(chart.series and all(len(series.y) for series in chart.series) for chart in shown.charts)


def test_the_summary_survives_json_and_holds_no_folder_of_the_machine() -> None:
    found = summed(*records.everything())
    text = json.dumps(found.as_dict(), allow_nan=False)
    assert "/somebody" not in text and "home" not in text
    assert Summary.from_json(json.loads(text)) == found


def test_hardware_has_every_variant_on_every_card_and_a_smaller_model_is_smaller() -> None:
    made = {f"tiny-{bits}": Quantization.from_json(records.quantization(bits)) for bits in (8, 4, 2)}
    found = hardware(config("llama"), made)
    assert found is not None
    sizes = found.weights_bytes
    assert sizes["tiny-2"] < sizes["tiny-4"] < sizes["tiny-8"] < sizes[BASELINE]
    cells = {(row.card, row.name) for row in found.rows}
    assert len(cells) == len(found.rows) == len({card for card, _ in cells}) * 4
    baseline = found.memory.sides[0]
    assert [side.name for side in found.memory.sides] == [BASELINE, *made]
    assert found.memory.contexts[-1] == 2048
    assert baseline.kv_bytes == tuple(2 * 2 * 2 * 16 * 2 * context for context in found.memory.contexts)


@pytest.mark.parametrize("tied", [False, True])
def test_hardware_counts_types_of_gguf(tied: bool) -> None:
    """Of a mixture, of one type, and of what a budget chose, embedding and head among them."""
    wide = config("llama", tie_word_embeddings=tied, hidden_size=256, intermediate_size=512, head_dim=64)
    plain = {"format": "gguf", "method": "rtn", "grid": None, "bits": None, "group_size": None, "symmetric": None}
    types = {"model.layers.0.mlp.up_proj": "Q8_0", "model.embed_tokens": "Q4_K"}
    made = {
        "mixture": Quantization(recipe={**plain, "type": "Q4_K_M"}),
        "type": Quantization(recipe={**plain, "type": "Q8_0"}),
        "budget": Quantization(recipe={**plain, "type": None, "target_bpw": 4.5}, allocation=ChosenBits(types=types)),
    }
    found = hardware(wide, made)
    assert found is not None
    sizes = found.weights_bytes
    assert sizes["mixture"] < 0.35 * sizes[BASELINE] and sizes["mixture"] < sizes["type"]
    matrices = 2 * (2 * 256 * 256 + 2 * 128 * 256 + 3 * 256 * 512) + (1 if tied else 2) * 512 * 256
    assert sizes[BASELINE] - sizes["type"] == pytest.approx(matrices * (16 - 8.5) / 8, abs=2)
    saved = 512 * 256 * (16 - 8.5) / 8 + 512 * 256 * (16 - 4.5) / 8
    assert sizes[BASELINE] - sizes["budget"] == pytest.approx(saved, abs=2)


def test_hardware_counts_tables_of_integers() -> None:
    plain: Settings = {"format": "compressed-tensors", "method": "rtn", "bits": 4, "group_size": 32}
    both = Quantization(recipe={**plain, "head_bits": 8, "embedding_bits": 4})
    found = hardware(config("llama"), {"floats": Quantization(recipe=plain), "both": both})
    assert found is not None
    sizes, numbers = found.weights_bytes, config("llama")["vocab_size"] * config("llama")["hidden_size"]
    assert sizes["floats"] - sizes["both"] == pytest.approx(numbers * (16 - 8.5 + 16 - 4.5) / 8, abs=2)


def test_hardware_of_a_budget_is_that_of_the_bits_it_chose() -> None:
    recipe = {"method": "rtn", "bits": None, "group_size": 32, "target_bpw": 6.0}
    chosen = dict.fromkeys(linears(config("llama"), architecture_of(config("llama")))[:-1], 8)
    found = hardware(
        config("llama"),
        {
            "budget": Quantization(recipe=recipe, allocation=ChosenBits(chosen)),
            "bits": Quantization(recipe={**recipe, "bits": 8, "target_bpw": None}),
        },
    )
    assert found is not None and found.weights_bytes["budget"] == found.weights_bytes["bits"]
    assert hardware(config("llama"), {"undecided": Quantization(recipe=recipe)}) is None


def test_measurements_of_a_gguf_file_are_those_of_the_output_that_holds_it() -> None:
    made = Quantization(model="m", recipe={"format": "gguf", "type": "Q4_K_M"}, bits_per_weight=4.8)
    runs = [
        ("r", QuantizeRun(out="/somewhere/out", record=made)),
        ("a", Verification(model="m", out="out/m-Q4_K_M.gguf")),
        ("b", Verification(model="m", out="/elsewhere/out/m-Q4_K_M.gguf")),
        ("c", Verification(model="m", out="other/m-Q8_0.gguf")),
        ("d", Verification(model="m", out="m-Q4_0.gguf")),
    ]
    found = {variant.name: len(variant.verifications) for variant in grouped(runs)}
    assert found == {"out": 2, "m-Q8_0.gguf": 1, "m-Q4_0.gguf": 1}


def test_hardware_of_a_model_that_is_not_known_is_left_out() -> None:
    assert hardware({"model_type": "unheard-of"}, {}) is None
    assert hardware(config("llama"), {"x": Quantization(recipe={"bits": "many"})}) is None


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

"""--head-bits and --embedding-bits in a plan: bytes, which formats and runtimes hold the tables, what stops them."""

from __future__ import annotations

from pathlib import Path

import pytest

from r1quant.checkpoint.resolve import EMBEDDED, open_model
from r1quant.checkpoint.safetensors import open_folder
from r1quant.errors import RecipeError
from r1quant.planning import place, planner
from r1quant.planning.plan import Plan
from r1quant.recipe import from_values
from tests import models
from tests.headers import write_headers

BOTH: dict[str, object] = {"head_bits": 8, "embedding_bits": 8, "format": "compressed-tensors"}


def made(**values: object) -> Plan:
    return planner.make(open_model(EMBEDDED), from_values({"group_size": 64, "method": "rtn", **values}))


def test_an_8b_of_4_bits_falls_below_5_gigabytes(tmp_path: Path) -> None:
    model = open_model(str(write_headers(tmp_path)))
    chosen: tuple[dict[str, object], ...] = ({}, {"head_bits": 8}, BOTH)
    plans = [planner.make(model, from_values({"method": "rtn", **values})) for values in chosen]
    assert not any(plan.problems for plan in plans)
    assert [round(plan.layout.nbytes / 1e9, 2) for plan in plans] == [6.10, 5.50, 4.85]


def test_tables_are_rounded_after_the_last_layer() -> None:
    plan = made(**BOTH)
    assert [table.name for table in plan.rounded_tables] == ["model.embed_tokens", "lm_head"]
    assert plan.steps == plan.layers + 1 and "lm_head" not in plan.plain and len(plan.linear_specs) == 30
    assert {plan.linear_specs[table.name].bits for table in plan.rounded_tables} == {8}
    assert not made().rounded_tables and "lm_head" in made().plain


def test_a_budget_counts_the_tables() -> None:
    sizes: dict[str, object] = {
        "target_size": 1_700_000,
        "method": "gptq",
        "bits": None,
        "format": "compressed-tensors",
    }
    floats, eight = made(**sizes), made(**{**sizes, **BOTH})
    assert floats.layout.nbytes <= 1_700_000 >= eight.layout.nbytes
    assert floats.allocation is not None and eight.allocation is not None
    linears = floats.allocation.grids.keys()
    assert eight.allocation.loss < floats.allocation.loss, "what the tables save goes to the linears"
    assert eight.allocation.grids.keys() == linears and "lm_head" in eight.grids


def test_runtimes_that_do_not_load_them_are_named() -> None:
    def refusing(plan: Plan, format: str) -> set[str]:
        return {v.runtime for v in plan.runtimes if "in floats only" in v.refuses.get(format, "")}

    assert refusing(made(head_bits=8), "gptq") == {"transformers"}
    assert refusing(made(**BOTH), "compressed-tensors") == {"SGLang", "transformers"}
    assert any("it loads the embedding in floats only" in warning for warning in made(**BOTH).warnings)
    assert not any(refusing(made(), format) for format in ("gptq", "compressed-tensors"))


@pytest.mark.parametrize(
    ("values", "message", "hint"),
    [
        ({"head_bits": 4, "format": "awq"}, "awq holds the head in floats only", "--format gptq"),
        ({"embedding_bits": 8}, "gptq holds the embedding in floats only", "--format compressed-tensors"),
    ],
)
def test_what_a_format_does_not_hold_is_refused(values: dict[str, object], message: str, hint: str) -> None:
    (problem,) = made(**values).problems
    assert problem.message == message and hint in problem.hint


def test_one_tensor_for_both_is_refused(tmp_path: Path) -> None:
    model = models.write_model(tmp_path / "model", "llama", tied=True)
    plan = planner.make(open_folder(model), from_values({"method": "rtn", "group_size": 32, "head_bits": 8}))
    (problem,) = plan.problems
    assert "one tensor (tie_word_embeddings)" in problem.message and "leave out --head-bits" in problem.hint


def test_gguf_has_types_instead() -> None:
    with pytest.raises(RecipeError, match="--head-bits does not go with --format gguf") as raised:
        from_values({"format": "gguf", "head_bits": 8})
    assert "--type" in raised.value.hint


def test_the_name_of_a_result_says_the_bits_of_its_tables(tmp_path: Path) -> None:
    named = place.default_out(open_model(EMBEDDED), made(**BOTH).recipe, tmp_path)
    assert named.name == "tiny-r1-compressed-tensors-w4g64-embedding8-head8-rtn"


def test_the_time_of_a_table_is_that_of_as_many_weights_of_linears(tmp_path: Path) -> None:
    model = open_model(str(write_headers(tmp_path)))
    floats, both = (planner.make(model, from_values({"method": "rtn", **values})) for values in ({}, BOTH))
    weights = [sum(matrix.weights for matrix in matrices) for matrices in (both.tables, both.linears)]
    added = both.estimate.seconds - floats.estimate.seconds
    assert added / weights[0] == pytest.approx(floats.estimate.seconds / weights[1], rel=0.1)

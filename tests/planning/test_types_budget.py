"""Types of GGUF within a budget: never above it, the best that fits it, and no worse than llama.cpp's mixtures."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1quant.checkpoint.resolve import EMBEDDED, open_model
from r1quant.core.blocktypes import BLOCK_TYPES, BlockGrid
from r1quant.core.grid import BITS, Grids
from r1quant.errors import RecipeError
from r1quant.planning import choices, planner
from r1quant.planning.budget import CardTarget, LossPredictions
from r1quant.planning.plan import Plan
from r1quant.recipe import Recipe, from_values


def recipe(**values: Any) -> Recipe:
    return from_values({"method": "rtn", "format": "gguf", **values})


@cache
def plan_of(**values: Any) -> Plan:
    """Of tiny-r1, whose rows are whole super-blocks."""
    return planner.make(open_model(EMBEDDED), recipe(**values))


def types_of(plan: Plan) -> dict[str, str]:
    return {name: grid.type for name, grid in plan.grids.items() if isinstance(grid, BlockGrid)}


LEAST, MOST = plan_of(type="Q2_K").layout.nbytes, plan_of(type="Q8_0").layout.nbytes
MATRICES = (*plan_of(type="Q8_0").linears, *plan_of(type="Q8_0").tables)


@st.composite
def losses(draw: st.DrawFn) -> LossPredictions:
    """Losses that fall with the bytes, each matrix in its own measure; or that do as they like."""
    orderly = draw(st.booleans())
    found: dict[str, dict[choices.Choice, float]] = {}
    for matrix in MATRICES:
        measure = draw(st.floats(1e-6, 1e3))
        found[matrix.name] = {
            type: measure * (choices.LOSS[type] if orderly else draw(st.floats(0, 1))) for type in choices.USUAL_TYPES
        }
    return LossPredictions(found, "made up")


@settings(max_examples=25, deadline=None)
@given(losses(), st.integers(LEAST + 60_000, MOST))
def test_the_file_is_never_larger_than_the_budget_and_no_exchange_of_two_types_is_better(
    predictions: LossPredictions, budget: int
) -> None:
    made = planner.make(open_model(EMBEDDED), recipe(target_size=budget))
    found = planner.allocated(made, predictions)
    assert not found.problems and found.layout.nbytes <= budget
    chosen, sizes = types_of(found), {matrix.name: matrix for matrix in MATRICES}
    assert chosen.keys() == sizes.keys() and found.allocation is not None
    total = math.fsum(predictions.of(name, type) for name, type in chosen.items())
    assert found.allocation.loss == pytest.approx(total) and found.allocation.types == chosen
    for name, type in chosen.items():  # whatever fits in the place of one alone loses no less, within the gap
        for other in choices.USUAL_TYPES:
            more = choices.stored(found.recipe, sizes[name], other) - choices.stored(found.recipe, sizes[name], type)
            if found.layout.nbytes + more <= budget:
                saved = predictions.of(name, type) - predictions.of(name, other)
                assert saved <= found.allocation.gap + 1e-9 * total


@settings(max_examples=10, deadline=None)
@given(losses())
@pytest.mark.parametrize("mixture", ["Q3_K_M", "Q4_K_S", "Q4_K_M", "Q5_K_M", "IQ4_XS"])
def test_at_the_bytes_of_a_mixture_no_more_is_lost_than_by_it(mixture: str, predictions: LossPredictions) -> None:
    stock = plan_of(type=mixture)
    made = planner.make(open_model(EMBEDDED), recipe(target_size=stock.layout.nbytes))
    found = planner.allocated(made, predictions)
    assert found.layout.nbytes <= stock.layout.nbytes and found.allocation is not None
    lost = math.fsum(predictions.of(name, type) for name, type in types_of(stock).items())
    assert found.allocation.loss <= lost * (1 + 1e-9) + found.allocation.gap


def test_bits_per_weight_count_embedding_and_head() -> None:
    made = plan_of(target_bpw=4.5)
    found = planner.allocated(made, LossPredictions.even(MATRICES))
    weights = sum(matrix.weights for matrix in MATRICES)
    assert made.budget is not None and made.budget.nbytes == round(4.5 * weights / 8)
    stored = sum(choices.stored(found.recipe, m, types_of(found)[m.name]) for m in MATRICES)
    assert found.bits_per_weight == pytest.approx(8 * stored / weights) and 4.4 < found.bits_per_weight <= 4.5
    assert found.recipe.as_dict()["type"] is None and found.out.name == "tiny-r1-gguf-4.5bpw-rtn"
    said = found.as_dict()["allocation"]
    assert said is not None and said["types"] == types_of(found) and said["bits"] == {}


def everywhere(type: str) -> int:
    """Bytes of the file if every matrix has this type."""
    made = plan_of(type="Q8_0")
    grids: Grids = {matrix.name: BlockGrid(type) for matrix in MATRICES}
    return planner.make(made.checkpoint, made.recipe, grids=grids).layout.nbytes


@pytest.mark.parametrize("smallest", ["Q2_K", "IQ2_XXS"])
def test_the_smallest_budget_is_that_of_the_smallest_type_to_the_byte(smallest: str) -> None:
    exact, allowed = everywhere(smallest), f"{smallest},Q6_K"
    found = planner.allocated(plan_of(target_size=exact, allowed_types=allowed), LossPredictions.even(MATRICES))
    assert found.layout.nbytes == exact and set(types_of(found).values()) == {smallest}
    (problem,) = plan_of(target_size=exact - 1, allowed_types=allowed).problems
    assert f"with {smallest} everywhere the weight files take" in problem.message


def test_a_card_leaves_bytes_for_the_file_beside_its_cache() -> None:
    made = plan_of(fit_gpu="RTX 4060", context=4096)
    assert made.budget is not None and made.budget.of == "files" and isinstance(made.budget.terms, CardTarget)
    assert made.budget.nbytes + made.budget.terms.runtime_bytes + made.budget.terms.kv_bytes == (
        made.budget.terms.usable_bytes
    )
    found = planner.allocated(made, LossPredictions.even(MATRICES))
    assert found.layout.nbytes <= made.budget.nbytes and set(types_of(found).values()) == {"Q8_0"}


def test_types_below_those_of_k_quants_join_if_nothing_else_fits_or_they_are_named() -> None:
    usual, small = plan_of(target_size=LEAST + 60_000).budget, plan_of(target_bpw=2.4).budget
    assert usual is not None and usual.choices == choices.USUAL_TYPES
    assert small is not None and small.choices == choices.SMALL_TYPES and "IQ2_XXS" in small.choices
    named = plan_of(target_bpw=4.0, allowed_types="IQ3_S,Q6_K").budget
    assert named is not None and named.choices == ("IQ3_S", "Q6_K")


def test_columns_that_are_no_super_blocks_get_what_llama_falls_back_to() -> None:
    narrow = replace(MATRICES[0], shape=(8, 96))
    among = choices.choices_of(recipe(target_bpw=4.5), narrow, choices.USUAL_TYPES)
    assert among and all(BLOCK_TYPES[str(type)].block == 32 for type in among) and "Q8_0" in among
    assert choices.tried(recipe(target_bpw=4.5), choices.USUAL_TYPES, 96) == ("IQ4_NL",)
    found = choices.extended({"IQ4_NL": 1.0}, choices.USUAL_TYPES, 96)
    assert set(found) >= set(among) and found["Q8_0"] < 0.01 < found["Q5_0"] < 1 == found["IQ4_NL"]
    assert not choices.matrices_of(recipe(target_bpw=4.5), (), (replace(narrow, shape=(8, 40)),))


def test_few_types_are_tried_and_the_others_follow() -> None:
    wanted = recipe(target_bpw=4.5)
    assert choices.tried(wanted, choices.SMALL_TYPES) == ("Q2_K", "Q3_K", "Q4_K")
    found = choices.extended({"Q2_K": 10.0, "Q3_K": 4.0, "Q4_K": 1.0}, choices.SMALL_TYPES)
    assert set(found) == set(choices.SMALL_TYPES) and found["Q3_K"] == 4.0
    assert found["IQ2_XXS"] > 10 > 4 > 1 < found["IQ4_XS"] < 2 and 1 > found["Q5_K"] > found["Q6_K"] > found["Q8_0"] > 0
    assert choices.LOSS.keys() == BLOCK_TYPES.keys()


def test_arguments_of_llama_quantize_say_what_was_chosen() -> None:
    found = planner.allocated(plan_of(target_bpw=4.5), LossPredictions.even(MATRICES))
    embedding, head, *patterns = found.arguments
    chosen = types_of(found)
    assert embedding == f"--token-embedding-type {chosen['model.embed_tokens']}"
    assert head == f"--output-tensor-type {chosen['lm_head']}"
    pairs = [re.fullmatch(r"--tensor-type '(.+)=(\w+)'", line) for line in patterns]
    for layer in range(4):
        for module, short in found.arch.gguf.modules.items():
            matches = [pair[2] for pair in pairs if pair and re.search(pair[1], f"blk.{layer}.{short}.weight")]
            wanted = chosen.get(f"model.layers.{layer}.{module}")
            assert matches == ([] if wanted is None else [wanted])
    assert not plan_of(target_bpw=4.5).arguments and not plan_of(type="Q4_K_M").arguments


@pytest.mark.parametrize(
    ("values", "says", "hint"),
    [
        ({"target_bpw": 1.9}, "1.9 bits a weight are too few: IQ2_XXS everywhere take 2.06", "a smaller model, or"),
        ({"target_bpw": 3.0, "allowed_types": "Q3_K,Q4_K"}, "Q3_K everywhere take 3.4", "--allowed-types"),
        ({"target_size": 10_000}, "10 kB are too few: with IQ2_XXS everywhere", "--target-size"),
        ({"target_bpw": 5.0, "allowed_types": "Q4_K"}, "with Q4_K alone there is nothing to choose", "--type"),
    ],
    ids=str,
)
def test_what_cannot_be_is_said_with_the_numbers(values: dict[str, Any], says: str, hint: str) -> None:
    (problem,) = planner.make(open_model(EMBEDDED), recipe(**values)).problems
    assert says in problem.message and hint in problem.hint


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"format": "gguf", "target_bpw": 4.5, "type": "Q4_K_M"}, "--type and --target-bpw exclude each other"),
        ({"format": "gguf", "target_bpw": 4.5, "allowed_bits": "4,8"}, "--allowed-bits does not go with --format gguf"),
        ({"format": "gguf", "allowed_types": "Q4_K,Q6_K"}, "--allowed-types says from which types a budget is met"),
        ({"target_bpw": 4.5, "allowed_types": "Q4_K,Q6_K"}, "--allowed-types does not go with --format gptq"),
        ({"format": "gguf", "target_bpw": 4.5, "allowed_types": "Q4_K_M"}, "allowed-types 'Q4_K_M' is not supported"),
        ({"format": "gguf", "target_bpw": 4.5, "group_size": 32}, "--group-size does not go with --format gguf"),
    ],
    ids=str,
)
def test_values_that_do_not_go_together(values: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError) as refused:
        from_values(values)
    assert says in refused.value.message and refused.value.hint


def test_bits_of_the_uniform_grid_are_chosen_as_before() -> None:
    made = planner.make(open_model(EMBEDDED), from_values({"method": "rtn", "target_bpw": 5.5}))
    found = planner.allocated(made, LossPredictions.even(made.linears))
    assert found.allocation is not None and set(found.allocation.bits.values()) <= set(BITS)
    said = found.as_dict()["allocation"]
    assert said is not None and not {"types", "arguments"} & said.keys()

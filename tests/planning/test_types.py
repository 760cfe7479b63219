"""The types of a GGUF file in a plan: which tensor gets which, how many bytes the file has, what cannot be had."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from r1quant.checkpoint.resolve import EMBEDDED, open_model
from r1quant.checkpoint.safetensors import Checkpoint, open_folder
from r1quant.core.blocktypes import BLOCK_TYPES, MIXTURES, TYPES, BlockGrid
from r1quant.planning import planner
from r1quant.planning.plan import Plan
from r1quant.recipe import Recipe
from tests import models
from tests.conftest import Run

RECIPE = Recipe(method="rtn", format="gguf")


def types_of(plan: Plan) -> dict[str, str]:
    return {name: grid.type for name, grid in plan.grids.items() if isinstance(grid, BlockGrid)}


def made(checkpoint: Checkpoint, type: str = "Q4_K_M", **values: object) -> Plan:
    return planner.make(checkpoint, replace(RECIPE, type=type, **values))  # type: ignore[arg-type]


@pytest.mark.parametrize("type", TYPES)
def test_every_type_makes_a_plan_of_all_matrices(type: str) -> None:
    plan = made(open_model(EMBEDDED), type)
    assert not plan.problems and len(types_of(plan)) == 30 == len(plan.matrices)
    tables = [table.name for table in plan.rounded_tables]
    assert tables == ["model.embed_tokens", "lm_head"] and plan.steps == plan.layers + 1
    if type in BLOCK_TYPES and type not in MIXTURES:
        assert {types_of(plan)[linear.name] for linear in plan.linears} == {type}
    stored = sum(matrix.shape[0] * BLOCK_TYPES[types_of(plan)[matrix.name]].row_bytes(matrix.shape[1])
                 for matrix in plan.matrices)  # fmt: skip
    assert stored == sum(plan.stored(matrix) for matrix in plan.matrices) < plan.layout.nbytes < stored + 60_000
    assert plan.bits_per_weight == pytest.approx(8 * stored / sum(matrix.weights for matrix in plan.matrices))


@pytest.mark.parametrize(
    ("type", "fallen"),
    [("Q4_K_M", {"Q5_0": 13, "Q8_0": 3}), ("Q3_K", {"Q4_0": 15, "Q8_0": 1}), ("IQ4_XS", {"IQ4_NL": 15, "Q8_0": 1})],
)
def test_columns_that_fill_no_super_block_get_types_of_smaller_blocks(
    llama: Path, type: str, fallen: dict[str, int]
) -> None:
    plan = made(open_folder(llama), type)
    assert not plan.problems
    counted = Counter(types_of(plan).values())
    assert counted.total() == 16 and all(BLOCK_TYPES[found].block == 32 for found in counted)
    assert counted == fallen


@pytest.mark.parametrize("sizes", [{"intermediate_size": 80}, {"hidden_size": 48, "head_dim": 12}], ids=str)
def test_columns_that_fill_no_block_are_refused(tmp_path: Path, run: Run, sizes: dict[str, Any]) -> None:
    folder = models.write_model(tmp_path / "odd", "llama", **sizes)
    (problem,) = made(open_folder(folder)).problems
    columns = next(iter(sizes.values()))
    assert f"has {columns} columns, which are not a multiple of 32, the smallest block of GGUF" in problem.message
    assert "--format gptq" in problem.hint
    ran = run("quantize", folder, "--format", "gguf", "--method", "rtn", "-o", "out")
    assert ran.error == [problem.message, problem.hint] and not Path("out").exists()
    shown = run("plan", folder, "--format", "gguf")
    assert shown.code == 2 and problem.message in shown.err


def test_a_tied_table_is_planned_once_with_the_type_of_the_head(tmp_path: Path) -> None:
    folder = models.write_model(tmp_path / "tied", "qwen2", tied=True, hidden_size=256, intermediate_size=256)
    plan = made(open_folder(folder))
    assert not plan.problems and [table.name for table in plan.rounded_tables] == ["model.embed_tokens"]
    assert types_of(plan)["model.embed_tokens"] == "Q6_K" and not any("tied" in line for line in plan.warnings)
    assert [entry["name"] for entry in plan.as_dict()["linears"]][-1] == "model.embed_tokens"


def test_the_plan_says_types_in_place_of_bits(run: Run) -> None:
    shown = run("plan", EMBEDDED, "--format", "gguf", "--type", "Q4_K_M")
    assert shown.code == 0 and "Q4_K (2x), Q6_K (2x)" in shown.out and "group" not in shown.out
    lines = [" ".join(line.split()) for line in shown.out.splitlines()]
    for line in (
        "model.embed_tokens 512 x 256 1 Q4_K",
        "lm_head 512 x 256 1 Q6_K",
        "onnxruntime onnx",
        "llama.cpp gguf",
    ):
        assert line in lines
    refused = "gptq, awq, compressed-tensors: only onnx and gguf hold Q4_K blocks, which add float minima"
    assert f"vLLM {refused}" in " ".join(shown.out.split())
    assert shown.out.count("only onnx and gguf hold") == 3  # one line for each runtime of other formats
    stated = run("plan", EMBEDDED, "--format", "gguf", "--type", "Q4_K_M", "--json").json
    recipe = stated["recipe"]
    assert recipe["type"] == "Q4_K_M" and {recipe[name] for name in ("grid", "bits", "group_size", "symmetric")} == {
        None
    }
    entries = {entry["name"]: entry for entry in stated["linears"]}
    assert entries["lm_head"]["type"] == "Q6_K" and entries["model.embed_tokens"]["type"] == "Q4_K"


def test_estimates_count_the_tables(tmp_path: Path) -> None:
    """A vocabulary of many tokens takes memory, time and disk to round."""
    folders = (
        models.write_model(tmp_path / str(tokens), "llama", vocab_size=tokens, tokenizer=False)
        for tokens in (512, 512 << 10)
    )
    small, large = (made(open_folder(folder), "Q8_0", method="gptq") for folder in folders)
    more = 2 * (512 << 10) * 64 - 2 * 512 * 64  # weights of embedding and head
    assert large.estimate.run_bytes - small.estimate.run_bytes == more * 34 // 32
    assert large.estimate.output_bytes == large.layout.nbytes
    growth = large.estimate.peak_rss_bytes - small.estimate.peak_rss_bytes
    assert 24 * more / 2 < growth < 40 * more / 2  # of the larger of the two: floats, and what rounding them takes
    assert large.estimate.seconds > small.estimate.seconds + 1e-8 * more


@pytest.mark.parametrize(
    ("words", "wrong", "remedy"),
    [
        (("--bits", "4"), "--bits does not go with --format gguf", "choose a --type"),
        (("--smooth", "0.5"), "--smooth does not go with --format gguf", "leave it out"),
        (("--awq",), "AWQ does not go with --format gguf", "leave it out"),
        (("--method", "awq"), "AWQ does not go with --format gguf", "leave it out"),
        (("--type", "q4_k_m"), "'q4_k_m' is not supported", "did you mean Q4_K_M"),
        (("--type", "Q4_K_XL"), "'Q4_K_XL' is not supported", "did you mean Q4_K_"),
        (("--type", "W4"), "'W4' is not supported", "choose from Q2_K"),
    ],
    ids=str,
)
def test_errors_of_the_command_line(run: Run, words: tuple[str, ...], wrong: str, remedy: str) -> None:
    ran = run("quantize", EMBEDDED, "--format", "gguf", *words)
    assert ran.code == 2 and wrong in ran.error[0] and remedy in ran.error[1]


def test_a_type_needs_the_format(run: Run) -> None:
    ran = run("quantize", EMBEDDED, "--type", "Q4_K_M")
    assert ran.code == 2 and "--type Q4_K_M is of GGUF files" in ran.error[0] and "--format gguf" in ran.error[1]

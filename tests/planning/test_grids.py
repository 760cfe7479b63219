"""A grid for every linear: what a plan makes of it, in bytes, formats, runtimes and problems."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from r1quant.checkpoint.safetensors import Checkpoint, open_folder
from r1quant.core.grid import Grid, Grids
from r1quant.planning import planner
from r1quant.planning.layout import Layout
from r1quant.planning.plan import Plan
from r1quant.recipe import Recipe

RECIPE = Recipe(method="rtn", group_size=32)


@pytest.fixture(scope="module")
def checkpoint(llama: Path) -> Checkpoint:
    return open_folder(llama)


def stages(checkpoint: Checkpoint, bits: Mapping[tuple[int, str], int | None], recipe: Recipe) -> Grids:
    """The recipe's grid with other bits for linears of these layers and stages; None is float."""
    linears = planner.make(checkpoint, recipe).linears
    chosen = {linear.name: bits.get((linear.layer, linear.stage), recipe.bits) for linear in linears}
    return {name: None if b is None else replace(recipe.uniform, bits=b) for name, b in chosen.items()}


def made(checkpoint: Checkpoint, bits: Mapping[tuple[int, str], int | None], recipe: Recipe = RECIPE) -> Plan:
    return planner.make(checkpoint, recipe, grids=stages(checkpoint, bits, recipe))


def test_one_grid_for_all_is_the_default(checkpoint: Checkpoint) -> None:
    found = planner.make(checkpoint, RECIPE)
    assert set(found.grids.values()) == {Grid(4, 32, zero_min=1)} and len(found.grids) == 14
    assert found == planner.make(checkpoint, RECIPE, grids=found.grids)


@pytest.mark.parametrize("format", ["gptq", "compressed-tensors"])
def test_bytes_are_those_of_each_linear(checkpoint: Checkpoint, format: str) -> None:
    recipe = replace(RECIPE, format=format)
    found = made(checkpoint, {(0, "qkv"): 8, (1, "gate_up"): 2, (1, "down"): None}, recipe)
    entries = {entry["name"]: entry for entry in found.as_dict()["linears"]}
    assert not found.problems and len(entries) == 14
    fixed = {"gptq": 4 * 64, "compressed-tensors": 16}[format]  # a group map, or the shape

    def expected(name: str, bits: int) -> int:
        rows, columns = found.checkpoint.tensors[f"{name}.weight"].shape
        zeros = rows * bits // 8 if format == "gptq" else 0
        return rows * columns * bits // 8 + columns // 32 * (zeros + 2 * rows) + fixed

    for name, bits in (("0.self_attn.k_proj", 8), ("0.self_attn.o_proj", 4), ("1.mlp.up_proj", 2)):
        entry = entries[f"model.layers.{name}"]
        assert (entry["bits"], entry["bytes"]) == (bits, expected(entry["name"], bits))
    down = entries["model.layers.1.mlp.down_proj"]
    assert (down["bits"], down["group_size"], down["bytes"]) == (16, None, 2 * 64 * 96)
    weights = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 96 * 64)
    assert found.bits_per_weight == 8 * sum(entry["bytes"] for entry in entries.values()) / weights
    assert found.quantized_parameters == weights - 64 * 96
    assert found.plain == ("model.layers.1.mlp.down_proj", "lm_head") and len(found.linear_specs) == 13
    assert isinstance(found.layout, Layout)
    names = {spec.name for shard in found.layout.shards for spec in shard}
    assert "model.layers.1.mlp.down_proj.weight" in names and "model.layers.1.mlp.up_proj.weight" not in names
    everything = sum(spec.nbytes for shard in found.layout.shards for spec in shard)
    assert 0 < found.layout.nbytes - everything < 20_000


def test_what_shares_an_input_has_one_grid(checkpoint: Checkpoint) -> None:
    grids = {**planner.make(checkpoint, RECIPE).grids}
    grids["model.layers.1.self_attn.v_proj"] = replace(RECIPE.uniform, bits=8)
    (problem,) = planner.make(checkpoint, RECIPE, grids=grids).problems
    assert "model.layers.1.self_attn.v_proj has another grid than model.layers.1.self_attn.q_proj" in problem.message


def test_a_format_that_lacks_the_bits_of_one_linear(checkpoint: Checkpoint) -> None:
    (problem,) = made(checkpoint, {(1, "attention_out"): 5}).problems
    assert problem.message == "model.layers.1.self_attn.o_proj: GPTQ files hold 2, 3, 4 or 8 bits, not 5"
    (problem,) = made(checkpoint, {(0, "gate_up"): 8}, replace(RECIPE, format="awq")).problems
    assert problem.message == "model.layers.0.mlp.gate_proj: AWQ files hold 4 bits, not 8"
    assert not made(checkpoint, {(0, "gate_up"): None}, replace(RECIPE, format="awq")).problems


@pytest.mark.parametrize("bits", [5, 6, 7])
def test_odd_bits_for_all(checkpoint: Checkpoint, bits: int) -> None:
    found = planner.make(checkpoint, replace(RECIPE, bits=bits, format="compressed-tensors"))
    assert not found.problems and found.bits_per_weight == pytest.approx(bits + 0.5, abs=0.05)
    held = [name for name, reason in found.as_dict()["formats"].items() if reason is None]
    assert held == ["compressed-tensors", "safetensors", "onnx", "gguf"]
    problem = planner.make(checkpoint, replace(RECIPE, bits=bits)).problems[0]
    assert f"GPTQ files hold 2, 3, 4 or 8 bits, not {bits}" in problem.message
    assert problem.hint == "use --bits 4, or --format compressed-tensors"


def test_runtimes_of_mixed_bits(checkpoint: Checkpoint) -> None:
    """Servers read `dynamic` of GPTQ and the groups of compressed-tensors; transformers reads only the latter."""
    for bits in ({(0, "qkv"): 8}, {(1, "down"): None}):
        loads = {verdict.runtime: verdict.loads for verdict in made(checkpoint, bits).runtimes}
        assert set(loads["vLLM"]) >= {"gptq", "compressed-tensors"} and loads["vLLM"] == loads["SGLang"]
        assert "compressed-tensors" in loads["transformers"] and "gptq" not in loads["transformers"]
        assert loads["onnxruntime"] == ("onnx",) and loads["llama.cpp"] == ("gguf",)
    asymmetric = made(checkpoint, {(0, "qkv"): 8}, replace(RECIPE, symmetric=False))
    loads = {verdict.runtime: verdict.loads for verdict in asymmetric.runtimes}
    assert loads["transformers"] == () and loads["onnxruntime"] == ("onnx",)
    loads = {verdict.runtime: verdict.loads for verdict in planner.make(checkpoint, RECIPE).runtimes}
    assert "gptq" in loads["transformers"]


def test_devices_must_split_every_layer_that_is_quantized(checkpoint: Checkpoint) -> None:
    """Also where the first layer stays in float: 96 columns over two devices are no multiple of 32."""
    bits: dict[tuple[int, str], int | None] = {(0, "down"): None}
    found = planner.make(checkpoint, RECIPE, None, 2, stages(checkpoint, bits, RECIPE))
    assert "mlp.down_proj has 48 columns on each of 2 devices" in found.problems[0].message
    bits[1, "down"] = None
    assert not planner.make(checkpoint, RECIPE, None, 2, stages(checkpoint, bits, RECIPE)).problems

"""A method and a grid that nothing in the package knows of: each joins by one entry in its table, and all works."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pytest
import torch

import r1quant
from r1quant.checkpoint.resolve import open_model
from r1quant.core.grid import Grid, ValueGrid, round_scale
from r1quant.core.grids import GRIDS, GridKind, register_grid
from r1quant.core.levels import LevelLinear
from r1quant.engine.grids.levels import LevelRounding
from r1quant.engine.grids.rounding import fit
from r1quant.engine.loss import loss_of
from r1quant.engine.methods.method import RoundingOptions, Solved
from r1quant.engine.stats import Stats
from r1quant.errors import RecipeError
from r1quant.formats.table import CODECS
from r1quant.jobs.artifacts import open_artifact
from r1quant.recipe import Recipe, RecipeArguments
from r1quant.registry import METHODS, Method, MethodCost, register_method
from tests import independent
from tests.conftest import Run

Floats = npt.NDArray[np.float32]
HALF = 2.0 ** -np.arange(7, dtype=np.float32)  # 1, 1/2, ... 1/64
LEVELS = np.concatenate([-HALF, np.zeros(1, np.float32), HALF[::-1]])
TOYS: RecipeArguments = {"method": "refined", "grid": "powers", "format": "safetensors", "group_size": 64}
SMALL: RecipeArguments = {**TOYS, "samples": 4, "seq_len": 64, "device": "cpu", "dtype": "float32"}


@dataclass(frozen=True)
class Powers:
    """Zero and powers of two of either sign, times a scale for each group: multiplication is a shift."""

    group_size: int

    kind: ClassVar[str] = "powers"
    bits: ClassVar[int] = 4

    def as_dict(self) -> dict[str, str | int | bool]:
        return {"kind": self.kind, "group_size": self.group_size}


def powers(grid: Grid) -> ValueGrid:
    if grid.bits != 4:
        raise RecipeError(f"the grid powers has 4 bits, not {grid.bits}", "use --bits 4")
    return Powers(grid.group_size)


def fit_powers(weight: Floats, grid: Powers, importance: Floats | None, search: bool) -> LevelRounding:
    """The scale is the largest weight of the group, or what leaves the least weighted error of some shares of it."""
    rows, columns = weight.shape
    size = columns if grid.group_size == -1 else grid.group_size
    group = (np.arange(columns) // size).astype(np.int32)
    largest = np.abs(weight).reshape(rows, -1, size).max(2)
    counted = np.ones(columns, np.float32) if importance is None else importance
    shares = np.linspace(0.7, 1.3, 5, dtype=np.float32) if search else np.ones(1, np.float32)
    best, least = np.empty(0), np.full(largest.shape, np.inf)
    for share in shares:
        scale = round_scale(largest * share, "portable")
        rounding = LevelRounding("powers", LEVELS, scale, np.zeros_like(scale), group)
        errors = (rounding.linear(rounding.nearest(weight)).dequantize() - weight) ** 2 * counted
        error = errors.reshape(rows, -1, size).sum(2)
        best = np.where(error < least, scale, best if best.size else scale)
        least = np.minimum(error, least)
    chosen = best.astype(np.float32)
    return LevelRounding("powers", LEVELS, chosen, np.zeros_like(chosen), group)


@dataclass
class Refined:
    """Rounds to nearest, then in each row changes the one weight that lowers the loss most, many times over."""

    losses: list[tuple[float, float]]
    tokens: list[int]

    def __call__(self, weight: torch.Tensor, stats: Stats | None, grid: ValueGrid, options: RoundingOptions) -> Solved:
        assert stats is not None
        w, h = np.ascontiguousarray(weight.numpy()), stats.hessian.numpy()
        rounding = fit(w, grid, stats.importance(options.damping), options.search)
        plain, rows = rounding.nearest(w), np.arange(len(w))
        codes, diagonal = plain.copy(), np.maximum(np.diag(h), 1e-8)
        for _ in range(24):
            values = rounding.linear(codes).dequantize()
            slope = (w - values) @ h
            moved = rounding.nearest(values + slope / diagonal)
            change = rounding.linear(moved).dequantize() - values
            gain = 2 * change * slope - change**2 * diagonal
            best = gain.argmax(1)
            better = rows[gain[rows, best] > 0]
            codes[better, best[better]] = moved[better, best[better]]
        before, after = (loss_of(weight, rounding.linear(c), stats).loss for c in (plain, codes))
        self.losses.append((float(before.sum()), float(after.sum())))
        self.tokens.append(stats.tokens)
        return Solved(rounding.linear(codes), rows_nearest=(codes == plain).all(1))


@pytest.fixture
def refined() -> Iterator[Refined]:
    """The toys are in the tables, for one test."""
    method = Refined([], [])
    register_method("refined", Method("to nearest, then the best changes", True, MethodCost(0, 6, 24), method))
    register_grid("powers", GridKind("powers of two", powers, fit_powers, LevelLinear.restore))
    yield method
    del METHODS["refined"], GRIDS["powers"]


def weights(folder: Path) -> Mapping[str, Floats]:
    """Of the linears of the decoder layers."""
    result = open_artifact(folder)
    names = [name for name in result.tensors if name.endswith("_proj.weight")]
    return {name: result.read(name).float().numpy() for name in names}


def on_powers(weight: Floats) -> bool:
    """Whether in each group all weights that are not 0 are powers of two of each other, at most 2**6 apart."""
    for group in np.abs(weight).reshape(-1, 64):
        exponents = np.log2(group[group > 0] / group.max())
        if not np.array_equal(exponents, np.rint(exponents)) or exponents.min(initial=0) < -6:
            return False
    return True


def test_a_toy_method_and_a_toy_grid_quantize_a_model(refined: Refined, in_tmp: Path) -> None:
    plan = r1quant.plan("tiny-r1", **SMALL)
    assert not plan.problems and plan.out.name.endswith("-w4g64-powers-refined")
    held = plan.as_dict()["formats"]
    assert held["safetensors"] is None and held["gptq"] == "gptq holds the integers of the uniform grid, not powers"

    done = r1quant.quantize("tiny-r1", in_tmp / "out", **SMALL)
    layers, names = plan.layers, [linear.name for linear in plan.linears]
    assert refined.tokens == [4 * 64] * 4 * layers, "each stage of each layer has statistics of all tokens"
    assert all(after < before for before, after in refined.losses)
    assert sum(after for _, after in refined.losses) < 0.95 * sum(before for before, _ in refined.losses)
    reports = {report.name: report for report in done.record.linears}
    assert list(reports) == names and done.record.recipe["grid"] == "powers"
    total = sum(report.loss or 0.0 for report in reports.values())
    assert total == pytest.approx(sum(after for _, after in refined.losses), rel=1e-4)

    written = weights(in_tmp / "out")
    assert {name.removesuffix(".weight") for name in written} == set(names)
    source = open_model("tiny-r1")
    for name, weight in written.items():
        assert on_powers(weight), name
        original = source.read(name).float().numpy()
        assert 0 < np.square(weight - original).sum() / np.square(original).sum() < 0.5
        assert not on_powers(original)
    assert "quantization_config" not in json.loads((in_tmp / "out" / "config.json").read_text("utf-8"))
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 32)))
    with torch.no_grad():
        ours, theirs = (independent.whole_model(open_model(m))(tokens).logits for m in (in_tmp / "out", "tiny-r1"))
    assert 0 < float((ours.log_softmax(-1) - theirs.log_softmax(-1)).abs().mean()) < 1


def test_feedback_rounds_to_a_toy_grid_as_well(refined: Refined, in_tmp: Path) -> None:
    """GPTQ does not know which grid it rounds to."""
    losses = {}
    for method in ("gptq", "awq"):
        values: RecipeArguments = {**SMALL, "method": method}
        done = r1quant.quantize("tiny-r1", in_tmp / method, **values)
        losses[method] = sum(report.loss or 0.0 for report in done.record.linears)
        assert all(map(on_powers, weights(in_tmp / method).values()))
    assert losses["gptq"] < 0.9 * losses["awq"]


@pytest.mark.parametrize(
    ("values", "message", "hint"),
    [
        ({"format": "gptq"}, "gptq does not hold the grid powers", "use --format safetensors"),
        ({"bits": 3}, "the grid powers has 4 bits, not 3", "use --bits 4"),
        ({"target_bpw": 4.5}, "--target-bpw chooses among the bits of the uniform grid", "leave it out"),
        ({"grid": "odd"}, "grid 'odd' is not supported", "choose from uniform, powers"),
        ({"method": "odd"}, "method 'odd' is not supported", "choose from gptq, awq, rtn, refined"),
        ({"grid": "uniform"}, "quantize does not write safetensors", "quantize without --format first"),
    ],
)
def test_what_a_toy_grid_cannot_do_is_refused(
    values: dict[str, str | int | float], message: str, hint: str, refined: Refined
) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe(**{**TOYS, **values})  # type: ignore[arg-type]  # some of them are wrong
    assert caught.value.message == message and caught.value.hint.startswith(hint)


@pytest.mark.parametrize("name", CODECS)
def test_formats_of_the_uniform_grid_refuse_other_integers(name: str) -> None:
    q = LevelLinear(
        "powers", np.zeros((32, 64), np.uint8), LEVELS, np.ones((32, 1), np.float32), np.zeros((32, 1), np.float32),
        np.zeros(64, np.int32),
    )  # fmt: skip
    with pytest.raises(RecipeError, match=f"{name} holds the integers of the uniform grid, not powers"):
        CODECS[name].encode(q)


def test_the_command_line_takes_them_too(refined: Refined, run: Run) -> None:
    words = ("--method", "refined", "--grid", "powers", "--format", "safetensors", "--group-size", "64")
    assert run("plan", "tiny-r1", *words, "--json").json["recipe"]["grid"] == "powers"


def test_a_name_is_given_once(refined: Refined) -> None:
    with pytest.raises(ValueError, match="there is a method gptq already"):
        register_method("gptq", METHODS["rtn"])
    with pytest.raises(ValueError, match="there is a grid powers already"):
        register_grid("powers", GRIDS["uniform"])

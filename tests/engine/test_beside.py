"""The float model beside the quantized one, for all of the calibration windows or for the first ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from r1quant.arch.tables import architecture_of
from r1quant.checkpoint.resolve import open_model
from r1quant.core.grid import ValueGrid
from r1quant.engine.forward import Decoder
from r1quant.engine.layer import quantize_layer
from r1quant.engine.layer_pass import LayerPass
from r1quant.engine.linear_report import Rounded
from r1quant.engine.solve import LayerSolver
from r1quant.engine.stats import Stats
from r1quant.errors import RecipeError
from r1quant.planning import estimates, planner
from r1quant.recipe import Recipe
from tests import models

SEQ_LEN, WINDOWS = 24, 200  # more than two chunks
CPU, RECIPE = torch.device("cpu"), Recipe(bits=8, group_size=16, corrected=True)
Solves = list[tuple[Stats, torch.Tensor]]


@pytest.fixture
def solves(monkeypatch: pytest.MonkeyPatch) -> Solves:
    """The statistics and the correction that each stage is rounded with."""
    real, kept = LayerSolver.solve, []

    def solve(
        self: LayerSolver,
        linears: tuple[str, ...],
        grids: Mapping[str, ValueGrid],
        stats: Stats,
        correction: torch.Tensor,
    ) -> Iterator[Rounded]:
        kept.append((stats, correction))
        return real(self, linears, grids, stats, correction)

    monkeypatch.setattr(LayerSolver, "solve", solve)
    return kept


def quantized(folder: Path, windows: int, beside: int) -> None:
    """The first layer, on inputs that have drifted, the float model running beside for the first ones."""
    checkpoint = open_model(folder)
    arch = architecture_of(checkpoint.config)
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, models.VOCABULARY, (WINDOWS, SEQ_LEN)))
    twice = [Decoder(checkpoint, arch, CPU, torch.float32, SEQ_LEN) for _ in range(2)]
    hidden = twice[0].embed(tokens)
    drifted = hidden + 0.3 * hidden.std() * torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), twice[0].layer(0) as layer, twice[1].layer(0) as original:
        layer_pass, reference = LayerPass(layer, drifted[:windows]), LayerPass(original, hidden[:beside].clone())
        grids = {f"{arch.layer_prefix(0)}{name}": RECIPE.value_grid for name in arch.layer.linears}
        list(quantize_layer(layer_pass, reference, None, arch.layer_prefix(0), checkpoint.read, RECIPE, grids))


@pytest.mark.parametrize("beside", [1, 85, 100, 170])
def test_the_correction_is_that_of_the_windows_it_runs_on(beside: int, tmp_path: Path, solves: Solves) -> None:
    folder = models.write_model(tmp_path / "model", "llama", dtype="float32")
    quantized(folder, WINDOWS, beside)
    quantized(folder, beside, beside)
    quantized(folder, WINDOWS, WINDOWS)
    for part, alone, whole in zip(solves[:4], solves[4:8], solves[8:], strict=True):
        assert part[0].tokens == WINDOWS * SEQ_LEN and alone[0].tokens == beside * SEQ_LEN
        assert float((part[1] - alone[1]).norm() / alone[1].norm()) < 0.05
        assert float((part[1] - whole[1]).norm() / whole[1].norm()) > 0.05
    first, alone, whole = solves[0], solves[4], solves[8]
    assert torch.allclose(first[1], alone[1], rtol=1e-3, atol=1e-5)
    assert torch.allclose(first[0].hessian, whole[0].hessian, rtol=1e-4, atol=1e-2)


def test_less_of_the_float_model_takes_less_memory_and_time(tmp_path: Path) -> None:
    checkpoint = open_model(models.write_model(tmp_path / "model", "llama"))

    def estimate(**values: Any) -> estimates.Estimate:
        return planner.make(checkpoint, Recipe(group_size=16, **values), None).estimate

    none, part, whole = estimate(), estimate(corrected=True, corrected_share=0.25), estimate(corrected=True)
    assert none.run_bytes < part.run_bytes < whole.run_bytes
    assert none.seconds < part.seconds < whole.seconds
    assert none.peak_rss_bytes < part.peak_rss_bytes < whole.peak_rss_bytes


@pytest.mark.parametrize("share", [0.0, 1.01, float("nan"), True, "half"])
def test_a_share_that_is_none_is_refused(share: Any) -> None:
    with pytest.raises(RecipeError, match="corrected-share is"):
        Recipe(corrected=True, corrected_share=share)

"""Rounds to nearest, tensor by tensor: no calibration, no forward pass, one linear in memory."""

from __future__ import annotations

import numpy as np

from r1quant.core.grid import Grid
from r1quant.engine.linear_report import LinearReport, Rounded
from r1quant.engine.methods import rtn
from r1quant.jobs.quantize import layer_files
from r1quant.planning.planner import Plan
from r1quant.progress import Progress
from r1quant.storage.rundir import RunDir


def quantize_layers(made: Plan, run: RunDir, first: int, progress: Progress) -> None:
    """Writes the parts of the layers from `first` on."""
    progress.begin("quantizing", made.layers)
    progress.advance(first)
    for layer in range(first, made.layers):
        linears = [linear.name for linear in made.linears if linear.layer == layer]
        rounded = [_round(made, name, grid) for name in linears if (grid := made.grids[name]) is not None]
        layer_files.write(run.part(layer), rounded)
        progress.advance(1, f"layer {layer + 1}/{made.layers}")


def _round(made: Plan, name: str, grid: Grid) -> Rounded:
    weight = made.checkpoint.unrounded().read(f"{name}.weight").float().numpy()
    q = rtn.quantize(weight, grid, made.recipe.scale_search)
    wrong = float(np.square(weight - q.dequantize()).sum())
    energy = float(np.square(weight).sum())
    report = LinearReport(name, None, wrong / energy if energy else 0.0, None, 0, 0, False)
    return Rounded(name, q, report)

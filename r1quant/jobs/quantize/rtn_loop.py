"""Rounds to nearest, tensor by tensor: no calibration, no forward pass, one linear in memory."""

from __future__ import annotations

from functools import partial

import numpy as np

from r1quant.core.grid import Grid
from r1quant.engine.linear_report import LinearReport, Rounded
from r1quant.engine.methods import rtn
from r1quant.jobs.quantize import layer_files
from r1quant.jobs.quantize.layer_loop import LayerDone, LayerLoop, States
from r1quant.planning.plan import Plan
from r1quant.progress import Progress
from r1quant.storage.rundir import RunDir


def quantize_layers(plan: Plan, folder: RunDir, progress: Progress) -> None:
    """Writes the layer files that are missing."""

    def rounded(layer: int, states: States) -> LayerDone:
        linears = [linear.name for linear in plan.linears if linear.layer == layer]
        done = [_round(plan, name, grid) for name in linears if (grid := plan.grids[name]) is not None]
        return LayerDone(partial(layer_files.write, linears=done))

    LayerLoop("quantizing", plan.layers, None, rounded).run(folder, progress)


def _round(plan: Plan, name: str, grid: Grid) -> Rounded:
    weight = plan.checkpoint.unrounded().read(f"{name}.weight").float().numpy()
    q = rtn.quantize(weight, grid, plan.recipe.scale_search)
    error = float(np.square(weight - q.dequantize()).sum())
    energy = float(np.square(weight).sum())
    report = LinearReport(name, None, error / energy if energy else 0.0, None, 0, 0, False)
    return Rounded(name, q, report)

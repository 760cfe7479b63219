"""Rounds by a method that needs no calibration: tensor by tensor, no forward pass, one linear in memory."""

from __future__ import annotations

from functools import partial

from r1quant.engine.solve import solve_alone
from r1quant.engine.tables import round_table
from r1quant.jobs.quantize import layer_files
from r1quant.jobs.quantize.layer_loop import LayerDone, LayerLoop, States
from r1quant.planning.plan import Plan
from r1quant.progress import Progress
from r1quant.storage.rundir import RunDir


def quantize_layers(plan: Plan, folder: RunDir, progress: Progress) -> None:
    """Writes the layer files that are missing."""
    read = plan.checkpoint.unrounded().read

    def rounded(layer: int, states: States) -> LayerDone:
        matrices = (*plan.linears, *plan.rounded_tables)
        linears = [matrix.name for matrix in matrices if matrix.layer == layer]
        rounding = solve_alone if layer < plan.layers else partial(round_table, stats=None)
        done = [
            rounding(name, read(f"{name}.weight"), grid, plan.recipe)
            for name in linears
            if (grid := plan.grids[name]) is not None
        ]
        return LayerDone(partial(layer_files.write, linears=done))

    LayerLoop("quantizing", plan.steps, None, rounded).run(folder, progress)

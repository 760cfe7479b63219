"""Quantizes one decoder layer while its calibration tokens pass through it once.

Stage by stage (q/k/v, attention output, gate/up, down): gather the statistics of the stage's input, quantize its
linears, put the rounded weights in place, compute the stage's output with them, go on. Each stage thus sees inputs
that come from quantized predecessors. If the float model runs beside, its outputs are what is aimed at, so that
later stages make up for the errors of earlier ones. It knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import repeat

import torch

from r1quant.arch.tables import Stage
from r1quant.core.grid import Grids
from r1quant.engine.correction import correction_of
from r1quant.engine.layer_pass import Chunks, LayerPass
from r1quant.engine.linear_report import Rounded
from r1quant.engine.sensitivity import Sensitivity
from r1quant.engine.solve import LayerSolver, Read, accumulator_for
from r1quant.engine.stats import HessianAccumulator
from r1quant.recipe import Recipe


def quantize_layer(
    layer_pass: LayerPass,
    reference: LayerPass | None,
    guidance: Mapping[str, Sensitivity] | None,
    prefix: str,
    read: Read,
    recipe: Recipe,
    grids: Grids,
) -> Iterator[Rounded]:
    """Yields every linear of the layer that has a grid, rounded.

    reference  the same layer with its original weights, and what entered it in the original model: the first windows
               of the pass, or all of them
    guidance   by the names of the linears within the layer
    read       gives the original weight of a linear by its full tensor name

    Raises NumericError if an input of a linear holds NaN or Inf.
    """
    solver = LayerSolver(layer_pass.layer, prefix, read, recipe)
    targets = repeat(None) if reference is None else (inputs for _, inputs in reference.stages())
    for (stage, inputs), target in zip(layer_pass.stages(), targets, strict=reference is not None):
        chosen = {name: grid for name in stage.linears if (grid := grids[prefix + name]) is not None}
        if chosen:
            accumulator = accumulator_for(layer_pass.layer, stage.linears, guidance)
            correction = _gather(layer_pass, reference, stage, inputs, target, accumulator, recipe.correction_ridge)
            yield from solver.solve(stage.linears, chosen, accumulator.stats, correction)


def _gather(
    layer_pass: LayerPass,
    reference: LayerPass | None,
    stage: Stage,
    inputs: Chunks,
    target: Chunks | None,
    sums: HessianAccumulator,
    ridge: float,
) -> torch.Tensor | None:
    """Fills the sums, and says how to move the weights so that the outputs are those that are wanted.

    What the outputs lack is W (y - x), y what the float model has in the place of x; the ends of a branch make up for
    the drift of the residual stream as well, unless a norm stands between. If it runs beside for some windows only,
    the correction follows from the statistics of these, before the others come to them.
    """
    if reference is None or target is None:
        for x in inputs():
            sums.add(x)
        return None
    drifts = stage.residual and not stage.post_norm
    weight = torch.cat([reference.layer.weight(name) for name in stage.linears])
    beside, left, correction = zip(target(), reference.chunks(), strict=True), len(reference.hidden), None
    for x, h in zip(inputs(), layer_pass.chunks(), strict=True):
        here = min(left, len(x))
        if here:
            y, g = next(beside)
            lacking = y - x[:here]
            if drifts:
                lacking = torch.nn.functional.linear(lacking, weight) + (g - h[:here]).to(y.device)
            sums.add(x[:here], lacking)
            left -= here
            if not left:
                correction = correction_of(sums, None if drifts else weight, ridge)
        if here < len(x):
            sums.add(x[here:])
    return correction

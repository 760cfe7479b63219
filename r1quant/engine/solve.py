"""Solves one stage of a layer: linears that share an input are rounded as one stack of rows, by the recipe's method.

What the layer pass gathers comes in, rounded linears with their reports come out. It knows nothing of tokens or files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch

from r1quant.core.grid import Grid
from r1quant.engine.blocks import DecoderLayer
from r1quant.engine.linear_report import LinearReport, Rounded
from r1quant.engine.methods import gptq
from r1quant.engine.sensitivity import Sensitivity
from r1quant.engine.stats import HessianAccumulator, Stats
from r1quant.errors import NumericError
from r1quant.recipe import Recipe

Read = Callable[[str], torch.Tensor]


def accumulator_for(
    layer: DecoderLayer, linears: tuple[str, ...], guidance: Mapping[str, Sensitivity] | None
) -> HessianAccumulator:
    """Tokens count by the norm of their gradient, not by its square, as the Fisher matrix would have it: squares leave
    so few of them (those that all others attend to) that the Hessian is one of a hundredth of the text. Linears that
    share an input share the weights of its tokens, the mean of their own."""
    weight = layer.weight(linears[0])
    if guidance is None:
        return HessianAccumulator(weight.shape[1], weight.device)
    norms = torch.stack([guidance[name].norms for name in linears])
    outputs = tuple(part for name in linears for part in guidance[name].covariance)
    return HessianAccumulator(weight.shape[1], weight.device, norms.mean(0), outputs)


def correction_of(sums: HessianAccumulator, weight: torch.Tensor | None) -> torch.Tensor:
    """weight [N, J]: of the linear, where what was lacking were inputs [..., J] of it, not its outputs."""
    drift, sums.drift = sums.drift, None
    assert drift is not None
    if weight is not None:
        drift = weight.float() @ drift
    return gptq.correction(sums.stats.hessian, drift)


def solve(
    layer: DecoderLayer,
    linears: tuple[str, ...],
    stats: Stats,
    correction: torch.Tensor | None,
    prefix: str,
    read: Read,
    recipe: Recipe,
    grid: Grid,
) -> Iterator[Rounded]:
    """Rounds linears that share their statistics as one stack and puts the result into the layer."""
    if not stats.finite:
        raise NumericError.overflow(f"the inputs of {prefix}{linears[0]} hold")
    originals = [read(f"{prefix}{name}.weight") for name in linears]
    device = layer.weight(linears[0]).device
    solved = gptq.quantize(
        torch.cat([w.to(device, torch.float32) for w in originals]),
        stats,
        grid,
        correction,
        search=recipe.scale_search,
        act_order=recipe.act_order,
        damping=recipe.damping,
        feedback=recipe.method == "gptq",
    )
    start = 0
    for name, original in zip(linears, originals, strict=True):
        stop = start + len(original)
        q = solved.qlinear.rows(start, stop)
        layer.set_weight(name, torch.from_numpy(q.dequantize()))
        yield Rounded(name, q, _report(prefix + name, solved, slice(start, stop), recipe.damping))
        start = stop


def _report(name: str, solved: gptq.Solved, rows: slice, asked: float) -> LinearReport:
    shares = solved.predicted_kl
    loss, energy = float(solved.loss[rows].sum()), float(solved.energy[rows].sum())
    return LinearReport(
        name=name,
        loss=loss,
        relative_loss=loss / energy if energy else 0.0,
        damping=solved.damping,
        raised=solved.damping > asked,
        dead_columns=solved.dead,
        rows_nearest=int(np.count_nonzero(solved.rows_nearest[rows])),
        fallback=solved.fallback,
        predicted_kl=None if shares is None else float(shares[rows].sum()),
    )

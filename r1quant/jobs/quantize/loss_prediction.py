"""What rounding each linear would cost at each number of bits, before the model is quantized.

After the sensitivity pass the float model runs once more; of every linear 1/2 tr(H_O E H E^T) is the KL divergence that
an error E of its weight costs to second order, E being what the recipe's own method leaves. Plain rounding would not do
in its place: how much less GPTQ loses differs from linear to linear. In this H tokens count by the square of their
gradient at that linear, as in the Fisher matrix, though methods round by its norm: a few tokens have most of the
gradient at v, and what they read is just where GPTQ errs least. Each layer's figures are kept as they are made. Trials
are made at few bits alone; beyond, an error of half the size costs a quarter.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from r1quant.core.grid import Grid
from r1quant.core.qlinear import QuantizedLinear
from r1quant.engine.grids.rounding import nearest
from r1quant.engine.layer_pass import LayerPass
from r1quant.engine.loss import kl_by_row
from r1quant.engine.methods.method import RoundingOptions, rounding_by
from r1quant.engine.sensitivity import Sensitivity
from r1quant.engine.solve import accumulator_for
from r1quant.engine.stats import HessianAccumulator, Stats
from r1quant.jobs.quantize.calibration import CalibrationRun, decoder_of
from r1quant.jobs.quantize.sensitivity import guidance_of
from r1quant.planning.budget import LossPredictions, tried
from r1quant.planning.plan import Plan
from r1quant.progress import Progress
from r1quant.recipe import FLOAT, Recipe
from r1quant.registry import METHODS
from r1quant.storage import atomic
from r1quant.storage.cache import Fingerprint, entry

TRIAL = "a trial rounding of each layer alone, after a sensitivity pass"
NEAREST = "rounding to nearest, after a sensitivity pass"
KIND = "each linear with the squares of its own gradients"  # how losses are told; another one makes them anew


def predicted(plan: Plan, calibration: CalibrationRun, bits: Sequence[int], progress: Progress) -> LossPredictions:
    """Of every linear of a plan, at each of the bits but 16, which lose nothing."""
    tokens, trials = calibration.tokens, tried(plan.recipe, bits)
    with torch.no_grad():
        decoder = decoder_of(plan, tokens.shape[1])
        guidance = guidance_of(decoder, calibration, plan.recipe, progress)
        fingerprint = _fingerprint(plan.recipe, trials)
        paths = [entry(guidance.folders[0], "losses", fingerprint, f"-{i:05d}.json") for i in range(plan.layers)]
        missing = [index for index, path in enumerate(paths) if _known(path) is None]
        hidden = decoder.embed(torch.from_numpy(tokens[: len(tokens) if missing else 0]))
        progress.begin("predicting", plan.layers)
        for index in range(max(missing, default=-1) + 1):
            with decoder.layer(index) as layer:
                layer_pass = LayerPass(layer, hidden)
                if index in missing:
                    prefix = plan.arch.layer_prefix(index)
                    losses = dict(_layer(plan, prefix, layer_pass, guidance.layer(index), trials))
                    atomic.write_bytes(paths[index], json.dumps(losses).encode())
                else:
                    deque(layer_pass.stages(), maxlen=0)
            progress.advance(1, f"layer {index + 1}/{plan.layers}")
    extended = {name: _beyond(loss, bits) for path in paths for name, loss in (_known(path) or {}).items()}
    return LossPredictions(extended, TRIAL if METHODS[plan.recipe.method].feedback else NEAREST)


def _fingerprint(recipe: Recipe, bits: Sequence[int]) -> Fingerprint:
    """What decides the losses, beside the sensitivity pass that they lie with: the rounding, and what else of the
    guidance it knows."""
    decisive = ("method", "scale_search", "act_order", "damping", "guided", "draws")
    values = recipe.uniform.as_dict() | {name: getattr(recipe, name) for name in decisive}
    return {name: str(value) for name, value in values.items()} | {"bits": str(sorted(bits)), "kind": KIND}


def _layer(
    plan: Plan, prefix: str, layer_pass: LayerPass, needed: Mapping[str, Sensitivity], bits: Sequence[int]
) -> Iterator[tuple[str, dict[int, float]]]:
    """The losses of each linear of a layer. The hidden states of the pass are replaced by the layer's output."""
    trials = METHODS[plan.recipe.method].feedback
    read, layer = plan.checkpoint.unrounded().read, layer_pass.layer
    for stage, inputs in layer_pass.stages():
        linears = stage.linears
        width, device = layer.weight(linears[0]).shape[1], layer.weight(linears[0]).device
        fisher = [HessianAccumulator(width, device, needed[name].squares, needed[name].covariance) for name in linears]
        rounding = accumulator_for(layer, linears, needed if plan.recipe.guided else None) if trials else None
        for x in inputs():
            for accumulator in (*fisher, *([rounding] if rounding else [])):
                accumulator.add(x)
        weights = [read(f"{prefix}{name}.weight").to(device, torch.float32) for name in linears]
        stats = rounding.stats if rounding else None
        losses = _losses(weights, [accumulator.stats for accumulator in fisher], stats, plan.recipe, bits)
        yield from ((prefix + name, loss) for name, loss in zip(linears, losses, strict=True))


def _losses(
    weights: Sequence[torch.Tensor], fisher: Sequence[Stats], stats: Stats | None, recipe: Recipe, bits: Sequence[int]
) -> list[dict[int, float]]:
    """Of linears that share their input, by bits the divergence that each costs.

    weights  float32 [N, K] of each
    fisher   the statistics that say what an error costs, of each
    stats    those to round by; None for rounding to nearest
    """
    together, rows = torch.cat(list(weights)), [len(weight) for weight in weights]
    losses = [dict[int, float]() for _ in weights]
    for count in bits:
        q = _rounded(together, stats, replace(recipe.uniform, bits=count), recipe)
        errors = together - torch.from_numpy(q.dequantize()).to(together.device)
        for loss, of_linear, error in zip(losses, fisher, torch.split(errors, rows), strict=True):
            loss[count] = float(kl_by_row(error, error @ of_linear.hessian, of_linear).sum())
    return losses


def _rounded(weight: torch.Tensor, stats: Stats | None, grid: Grid, recipe: Recipe) -> QuantizedLinear:
    if stats is None:
        return nearest(weight.cpu().numpy(), grid, None, recipe.scale_search)
    return rounding_by(recipe.method)(weight, stats, grid, RoundingOptions.of(recipe)).qlinear


def _beyond(losses: Mapping[int, float], bits: Sequence[int]) -> dict[int, float]:
    """Those of the trials, and of more bits than any trial had."""
    most = max(losses)
    return dict(losses) | {count: losses[most] * 4.0 ** (most - count) for count in bits if most < count != FLOAT}


def _known(path: Path) -> dict[str, Mapping[int, float]] | None:
    try:
        read = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return {name: {int(bits): loss for bits, loss in losses.items()} for name, losses in read.items()}

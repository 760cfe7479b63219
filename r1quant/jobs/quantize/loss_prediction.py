"""What rounding each matrix would cost at each number of bits or as each type, before the model is quantized.

After the sensitivity pass the float model runs once more; of every linear 1/2 tr(H_O E H E^T) is the KL divergence that
an error E of its weight costs to second order, E being what the recipe's own method leaves. Plain rounding would not do
in its place: how much less GPTQ loses differs from linear to linear. In this H tokens count by the square of their
gradient at that linear, as in the Fisher matrix, though methods round by its norm: a few tokens have most of the
gradient at v, and what they read is just where GPTQ errs least. What embedding and head cost is told by
engine/table_loss.py. Each layer's figures are kept as they are made. Trials are made at few bits or types alone;
planning/choices.py says what the others lose.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from r1quant.core.grid import ValueGrid
from r1quant.core.qlinear import QuantizedLinear
from r1quant.engine.forward import Decoder, head_name, scaled
from r1quant.engine.grids.rounding import nearest
from r1quant.engine.layer_pass import LayerPass
from r1quant.engine.loss import kl_by_row
from r1quant.engine.methods.method import RoundingOptions, rounding_by
from r1quant.engine.solve import accumulator_for
from r1quant.engine.stats import HessianAccumulator, Stats
from r1quant.engine.table_loss import draw
from r1quant.engine.tables import head_statistics
from r1quant.jobs.quantize.calibration import CalibrationRun, decoder_of
from r1quant.jobs.quantize.sensitivity import SEED, Sensitivities, guidance_of
from r1quant.planning.budget import LossPredictions
from r1quant.planning.choices import Choice, extended, grid_of, matrices_of, tried
from r1quant.planning.linears import LinearPlan
from r1quant.planning.plan import Plan
from r1quant.progress import Progress
from r1quant.recipe import Recipe
from r1quant.registry import METHODS
from r1quant.storage import atomic
from r1quant.storage.cache import entry

TRIAL = "a trial rounding of each layer alone, after a sensitivity pass"
NEAREST = "rounding to nearest, after a sensitivity pass"
KIND = "each linear with the squares of its own gradients"  # how losses are told; another one makes them anew


def predicted(plan: Plan, calibration: CalibrationRun, among: Sequence[Choice], progress: Progress) -> LossPredictions:
    """Of every linear of a plan, and of its tables if there are choices for them, at each choice but float."""
    job = _Prediction.of(plan, calibration, among, progress)
    with torch.no_grad():
        known = job.run()
    return LossPredictions(known, TRIAL if METHODS[plan.recipe.method].feedback else NEAREST)


@dataclass(frozen=True, eq=False)
class _Prediction:
    """guidance: of the sensitivity pass, beside which the figures of each layer are kept."""

    plan: Plan
    calibration: CalibrationRun
    among: Sequence[Choice]
    decoder: Decoder
    guidance: Sensitivities
    progress: Progress

    @classmethod
    def of(cls, plan: Plan, calibration: CalibrationRun, among: Sequence[Choice], progress: Progress) -> _Prediction:
        decoder = decoder_of(plan, calibration.tokens.shape[1])
        guidance = guidance_of(decoder, calibration, plan.recipe, progress)
        return cls(plan, calibration, among, decoder, guidance, progress)

    def run(self) -> dict[str, Mapping[Choice, float]]:
        """The losses, after what is missing of the figures has been made."""
        plan, tokens = self.plan, torch.from_numpy(self.calibration.tokens)
        steps = plan.layers + bool(self.tables)
        paths = [self._path(f"-{index:05d}.json") for index in range(steps)]
        missing = [index for index, path in enumerate(paths) if _known(path) is None]
        hidden = self.decoder.embed(tokens if missing else tokens[:0])
        self.progress.begin("predicting", steps)
        for index in range(max(missing, default=-1) + 1):
            if index == plan.layers:
                losses = dict(self._tables(hidden))
            else:
                with self.decoder.layer(index) as layer:
                    losses = dict(self._layer(index, LayerPass(layer, hidden), index in missing))
            if index in missing:
                atomic.write_bytes(paths[index], json.dumps(losses).encode())
            self.progress.advance(1, f"layer {index + 1}/{plan.layers}")
        columns = {matrix.name: matrix.shape[1] for matrix in (*plan.linears, *self.tables)}
        found = {name: loss for path in paths for name, loss in (_known(path) or {}).items()}
        return {name: extended(loss, self.among, columns[name]) for name, loss in found.items()}

    @property
    def tables(self) -> tuple[LinearPlan, ...]:
        """Those of the plan for which there are choices."""
        return matrices_of(self.plan.recipe, (), self.plan.tables)

    def _path(self, suffix: str) -> Path:
        """What decides the losses, beside the sensitivity pass that they lie with: the rounding, and what else of the
        guidance it knows."""
        recipe = self.plan.recipe
        decisive = ("method", "scale_search", "act_order", "damping", "guided", "draws")
        values = {} if recipe.typed else recipe.uniform.as_dict()
        values |= {name: getattr(recipe, name) for name in decisive}
        trials = sorted(map(str, tried(recipe, self.among)))
        fingerprint = {name: str(value) for name, value in values.items()} | {"trials": str(trials), "kind": KIND}
        return entry(self.guidance.folders[0], "losses", fingerprint, suffix)

    def _layer(self, index: int, layer_pass: LayerPass, missing: bool) -> Iterator[tuple[str, dict[Choice, float]]]:
        """The losses of each linear of a layer if they are missing. The hidden states of the pass are replaced by the
        layer's output."""
        if not missing:
            deque(layer_pass.stages(), maxlen=0)
            return
        recipe, prefix = self.plan.recipe, self.plan.arch.layer_prefix(index)
        needed = self.guidance.layer(index)
        trials = METHODS[recipe.method].feedback
        read, layer = self.plan.checkpoint.unrounded().read, layer_pass.layer
        for stage, inputs in layer_pass.stages():
            linears = stage.linears
            width, device = layer.weight(linears[0]).shape[1], layer.weight(linears[0]).device
            fisher = [
                HessianAccumulator(width, device, needed[name].squares, needed[name].covariance) for name in linears
            ]
            rounding = accumulator_for(layer, linears, needed if recipe.guided else None) if trials else None
            for x in inputs():
                for accumulator in (*fisher, *([rounding] if rounding else [])):
                    accumulator.add(x)
            weights = [read(f"{prefix}{name}.weight").to(device, torch.float32) for name in linears]
            stats = rounding.stats if rounding else None
            choices = tried(recipe, self.among, width)
            losses = _losses(weights, [accumulator.stats for accumulator in fisher], stats, recipe, choices)
            yield from ((prefix + name, loss) for name, loss in zip(linears, losses, strict=True))

    def _tables(self, hidden: torch.Tensor) -> Iterator[tuple[str, dict[Choice, float]]]:
        """The losses of embedding and head; hidden: what comes out of the last layer."""
        recipe, weights = self.plan.recipe, self.decoder.weights
        scores = head_name(weights, self.plan.arch)
        for table in self.tables:
            losses = dict[Choice, float].fromkeys(tried(recipe, self.among, table.shape[1]), 0.0)
            weight = weights.read(f"{table.name}.weight")
            if f"{table.name}.weight" == scores:
                drawn, stats = draw(self.decoder, hidden, SEED), self._head_stats(hidden)
                for choice in losses:
                    losses[choice] += drawn.loss(_error(weight[drawn.rows], stats, choice, recipe))
            if f"{table.name}.weight" == self.plan.arch.tensors.embedding:
                needed = self.guidance.embedding()
                for choice in losses:
                    error = _error(weight[needed.used], None, choice, recipe)
                    losses[choice] += needed.loss(scaled(error, weights.config, self.plan.arch))
            yield table.name, losses

    def _head_stats(self, hidden: torch.Tensor) -> Stats | None:
        if not METHODS[self.plan.recipe.method].feedback:
            return None
        return head_statistics(self.decoder, hidden)


def _losses(
    weights: Sequence[torch.Tensor],
    fisher: Sequence[Stats],
    stats: Stats | None,
    recipe: Recipe,
    choices: Sequence[Choice],
) -> list[dict[Choice, float]]:
    """Of linears that share their input, by choice the divergence that each costs.

    weights  float32 [N, K] of each
    fisher   the statistics that say what an error costs, of each
    stats    those to round by; None for rounding to nearest
    """
    together, rows = torch.cat(list(weights)), [len(weight) for weight in weights]
    losses = [dict[Choice, float]() for _ in weights]
    for choice in choices:
        errors = _error(together, stats, choice, recipe)
        for loss, of_linear, error in zip(losses, fisher, torch.split(errors, rows), strict=True):
            loss[choice] = float(kl_by_row(error, error @ of_linear.hessian, of_linear).sum())
    return losses


def _error(weight: torch.Tensor, stats: Stats | None, choice: Choice, recipe: Recipe) -> torch.Tensor:
    """float32 [N, K]: what a weight [N, K] in any float dtype loses at a choice other than float."""
    grid = grid_of(recipe, choice)
    assert grid is not None
    exact = weight.float() if stats is None else weight.to(stats.hessian.device, torch.float32)
    return exact - torch.from_numpy(_rounded(exact, stats, grid, recipe).dequantize()).to(exact.device)


def _rounded(weight: torch.Tensor, stats: Stats | None, grid: ValueGrid, recipe: Recipe) -> QuantizedLinear:
    if stats is None:
        return nearest(weight.cpu().numpy(), grid, None, recipe.scale_search)
    return rounding_by(recipe.method)(weight, stats, grid, RoundingOptions.of(recipe)).qlinear


def _known(path: Path) -> dict[str, dict[Choice, float]] | None:
    try:
        read = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return {name: {_choice(key): loss for key, loss in losses.items()} for name, losses in read.items()}


def _choice(key: str) -> Choice:
    return int(key) if key.isdecimal() else key

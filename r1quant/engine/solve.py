"""Rounds linears by a recipe's method and says how they fared: those that share an input as one stack of rows.

What a layer pass gathers comes in, rounded linears with their reports come out. It knows nothing of tokens or files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from r1quant.core.grid import ValueGrid
from r1quant.engine.blocks import DecoderLayer
from r1quant.engine.linear_report import Rounded
from r1quant.engine.loss import Loss, loss_of
from r1quant.engine.methods.method import RoundingOptions, Solved, rounding_by
from r1quant.engine.sensitivity import Sensitivity
from r1quant.engine.stats import HessianAccumulator, Stats
from r1quant.errors import NumericError
from r1quant.recipe import Recipe
from r1quant.records.quantization import LinearReport

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
    outputs = tuple(covariance for name in linears for covariance in guidance[name].covariance)
    return HessianAccumulator(weight.shape[1], weight.device, norms.mean(0), outputs)


@dataclass(frozen=True, eq=False)
class LayerSolver:
    """Rounds the linears of one layer and puts them into it.

    prefix  of the names of the layer's linears
    read    gives the original weight of a linear by its full tensor name
    """

    layer: DecoderLayer
    prefix: str
    read: Read
    recipe: Recipe

    def solve(
        self,
        linears: tuple[str, ...],
        grids: Mapping[str, ValueGrid],
        stats: Stats,
        correction: torch.Tensor | None,
    ) -> Iterator[Rounded]:
        """Linears that share their statistics, by their names within the layer; those without a grid stay as they are.

        correction  float32 [N, K], what to add to the stacked weights before they are rounded

        Raises NumericError if an input of a linear holds NaN or Inf.
        """
        if not stats.finite:
            raise NumericError.overflow(f"the inputs of {self.prefix}{linears[0]} hold")
        rows, start = dict[str, slice](), 0
        for name in linears:
            rows[name] = slice(start, start := start + len(self.layer.weight(name)))
        for grid in dict.fromkeys(grids.values()):  # those on one grid are rounded as one
            names = [name for name in linears if grids.get(name) == grid]
            if len(names) == len(linears):
                yield from self._solve_alike(names, grid, stats, correction)
            else:
                runs = [rows[name] for name in names]
                moved = None if correction is None else torch.cat([correction[run] for run in runs])
                yield from self._solve_alike(names, grid, _stats_of(stats, runs), moved)

    def _solve_alike(
        self, names: Sequence[str], grid: ValueGrid, stats: Stats, correction: torch.Tensor | None
    ) -> Iterator[Rounded]:
        """Linears on one grid; stats and correction are of their stacked rows."""
        originals = [self.read(f"{self.prefix}{name}.weight") for name in names]
        device = self.layer.weight(names[0]).device
        weight = torch.cat([original.to(device, torch.float32) for original in originals])
        target = weight if correction is None else weight + correction
        solved = rounding_by(self.recipe.method)(target, stats, grid, RoundingOptions.of(self.recipe))
        del target
        loss = loss_of(weight, solved.qlinear, stats)
        dead, start = int(stats.dead.sum()), 0
        for name, original in zip(names, originals, strict=True):
            rows = slice(start, start + len(original))
            q = solved.qlinear.rows(rows.start, rows.stop)
            self.layer.set_weight(name, torch.from_numpy(q.dequantize()))
            yield Rounded(name, q, _report(self.prefix + name, solved, loss, rows, dead, self.recipe.damping))
            start = rows.stop


def _stats_of(stats: Stats, rows: Sequence[slice]) -> Stats:
    """The statistics of some of the linears that share them, by the rows that they have in the stack."""
    if stats.outputs is None:
        return stats
    outputs, start = [], 0
    for covariance in stats.outputs:
        if any(run.start <= start < run.stop for run in rows):
            outputs.append(covariance)
        start += len(covariance)
    return replace(stats, outputs=tuple(outputs))


def _report(name: str, solved: Solved, loss: Loss, rows: slice, dead: int, damping: float) -> LinearReport:
    """That of some rows of a stack; damping is what the recipe asks for."""
    shares, nearest = loss.predicted_kl, solved.rows_nearest
    lost, energy = float(loss.loss[rows].sum()), float(loss.energy[rows].sum())
    return LinearReport(
        name=name,
        loss=lost,
        relative_loss=lost / energy if energy else 0.0,
        damping=solved.damping,
        raised=solved.damping is not None and solved.damping > damping,
        dead_columns=dead,
        rows_nearest=0 if nearest is None else int(np.count_nonzero(nearest[rows])),
        fallback=solved.fallback,
        predicted_kl=None if shares is None else float(shares[rows].sum()),
    )


def solve_alone(name: str, weight: torch.Tensor, grid: ValueGrid, recipe: Recipe) -> Rounded:
    """Rounds one linear by a method that needs no statistics; weight: [N, K] in any float dtype, on the host."""
    exact = weight.float()
    solved = rounding_by(recipe.method)(exact, None, grid, RoundingOptions.of(recipe))
    error = float(np.square(exact.numpy() - solved.qlinear.dequantize()).sum())
    energy = float(np.square(exact.numpy()).sum())
    report = LinearReport(name, None, error / energy if energy else 0.0, solved.damping, 0, 0, solved.fallback)
    return Rounded(name, solved.qlinear, report)

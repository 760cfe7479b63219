"""Quantizes one decoder layer while its calibration tokens pass through it once.

Stage by stage (q/k/v, attention output, gate/up, down): gather the statistics of the stage's input, quantize its
linears, put the rounded weights in place, compute the stage's output with them, go on. Each stage thus sees inputs
that come from quantized predecessors. Where the float model runs beside, its outputs are what is aimed at, so that
later stages make up for the errors of earlier ones. It knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import torch

from r1quant.core.grid import Grid, Grids
from r1quant.core.limits import KEPT_LIMIT
from r1quant.engine.forward import DecoderLayer, chunked
from r1quant.engine.linear_report import LinearReport, Rounded
from r1quant.engine.methods import gptq
from r1quant.engine.sensitivity import Sensitivity
from r1quant.engine.stats import HessianAccumulator, Stats
from r1quant.errors import NumericError
from r1quant.recipe import Recipe

Read = Callable[[str], torch.Tensor]
Chunks = Callable[[], Iterable[torch.Tensor]]
ENDS = (1, 3)  # the stages whose outputs are added to the residual stream


@dataclass(frozen=True, eq=False)
class Stream:
    """A layer and the tokens that pass through it: hidden [windows, seq_len, width], replaced by what comes out."""

    layer: DecoderLayer
    hidden: torch.Tensor

    def chunks(self) -> Iterator[torch.Tensor]:
        return chunked(self.hidden)

    def stages(self) -> Iterator[tuple[int, Chunks]]:
        """Each stage and what its linears read. The outputs of a stage, with the weights that are then in place, are
        computed when the next one is asked for."""
        inputs: Chunks = self.chunks
        for stage in range(len(self.layer.arch.layer.stages)):
            inputs = self._inputs(stage, inputs)
            yield stage, inputs
            if stage in ENDS:
                self._add(stage, inputs)

    def _inputs(self, stage: int, before: Chunks) -> Chunks:
        """Kept where they are small; before: what the linears of the stage before read."""
        layer, device, width = self.layer, self.layer.cos_sin[0].device, self._width(stage)
        of = (layer.attention_input, layer.attention, layer.mlp_input, layer.gated)[stage]

        def chunks() -> Iterable[torch.Tensor]:
            source = before() if stage in ENDS else self.chunks()
            return (of(chunk.to(device)) for chunk in source)

        if self.hidden.shape[:2].numel() * width * self.hidden.element_size() > KEPT_LIMIT:
            return chunks
        held = [chunk.to(self.hidden.device) for chunk in chunks()]
        return lambda: held

    def _width(self, stage: int) -> int:
        return self.layer.weight(self.layer.arch.layer.stages[stage][0]).shape[1]

    def _add(self, stage: int, inputs: Chunks) -> None:
        """The outputs of a stage, to the residual stream."""
        (linear,) = self.layer.arch.layer.stages[stage]
        for chunk, x in zip(self.chunks(), inputs(), strict=True):
            chunk += self.layer.apply(linear, x.to(self.layer.cos_sin[0].device)).to(chunk.device)


def quantize_layer(
    stream: Stream,
    reference: Stream | None,
    guidance: Mapping[str, Sensitivity] | None,
    prefix: str,
    read: Read,
    recipe: Recipe,
    grids: Grids,
) -> Iterator[Rounded]:
    """Yields every linear of the layer that has a grid, rounded; linears that share an input have the same.

    reference  the same layer with its original weights, and what entered it in the original model: the first windows
               of the stream, or all of them
    guidance   by the names of the linears within the layer
    read       gives the original weight of a linear by its full tensor name

    Raises NumericError where an input of a linear holds NaN or Inf.
    """
    aims = repeat(None) if reference is None else (inputs for _, inputs in reference.stages())
    for (stage, inputs), wanted in zip(stream.stages(), aims, strict=reference is not None):
        linears = stream.layer.arch.layer.stages[stage]
        grid = grids[prefix + linears[0]]
        if grid is not None:
            sums = accumulator_for(stream.layer, linears, guidance)
            correction = _gather(stream, reference, stage, inputs, wanted, linears, sums)
            yield from _solve(stream.layer, linears, sums.stats, correction, prefix, read, recipe, grid)


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


def _gather(
    stream: Stream,
    reference: Stream | None,
    stage: int,
    inputs: Chunks,
    wanted: Chunks | None,
    linears: tuple[str, ...],
    sums: HessianAccumulator,
) -> torch.Tensor | None:
    """Fills the sums, and says how to move the weights so that the outputs are those that are wanted.

    What the outputs lack is W (y - x), y what the float model has in the place of x; the ends of a branch make up for
    the drift of the residual stream as well. Where it runs beside for some windows only, the correction follows from
    the statistics of these, before the others come to them.
    """
    if reference is None or wanted is None:
        for x in inputs():
            sums.add(x)
        return None
    weight = torch.cat([reference.layer.weight(name) for name in linears])
    beside, left, correction = zip(wanted(), reference.chunks(), strict=True), len(reference.hidden), None
    for x, h in zip(inputs(), stream.chunks(), strict=True):
        here = min(left, len(x))
        if here:
            y, g = next(beside)
            lacking = y - x[:here]
            if stage in ENDS:
                lacking = torch.nn.functional.linear(lacking, weight) + (g - h[:here]).to(y.device)
            sums.add(x[:here], lacking)
            left -= here
            if not left:
                correction = _correction(sums, None if stage in ENDS else weight)
        if here < len(x):
            sums.add(x[here:])
    return correction


def _correction(sums: HessianAccumulator, weight: torch.Tensor | None) -> torch.Tensor:
    """weight [N, J]: of the linear, where what was lacking were inputs [..., J] of it, not its outputs."""
    drift, sums.drift = sums.drift, None
    assert drift is not None
    if weight is not None:
        drift = weight.float() @ drift
    return gptq.correction(sums.stats.hessian, drift)


def _solve(
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

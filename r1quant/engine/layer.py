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

import torch

from r1quant.core.grid import Grids
from r1quant.core.limits import KEPT_LIMIT
from r1quant.engine.forward import DecoderLayer, chunked
from r1quant.engine.linear_report import Rounded
from r1quant.engine.sensitivity import Sensitivity
from r1quant.engine.solve import Read, accumulator_for, correction_of, solve
from r1quant.engine.stats import HessianAccumulator
from r1quant.recipe import Recipe

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
        layer, device, width = self.layer, self.layer.device, self._width(stage)
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
            chunk += self.layer.apply(linear, x.to(self.layer.device)).to(chunk.device)


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
            yield from solve(stream.layer, linears, sums.stats, correction, prefix, read, recipe, grid)


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
                correction = correction_of(sums, None if stage in ENDS else weight)
        if here < len(x):
            sums.add(x[here:])
    return correction

"""Quantizes one decoder layer while its calibration tokens pass through it once.

Stage by stage (q/k/v, attention output, gate/up, down): gather the statistics of the stage's input, quantize its
linears as one stack, put the rounded weights in place, compute the stage's output with them, go on. Each stage thus
sees inputs that come from quantized predecessors. It knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from r1quant.errors import NumericError
from r1quant.forward import DecoderLayer, chunked
from r1quant.jobs.rounded import LinearReport, Rounded
from r1quant.methods import gptq
from r1quant.planner import KEPT_LIMIT
from r1quant.recipe import Recipe
from r1quant.stats import gather

Read = Callable[[str], torch.Tensor]
Chunks = Callable[[], Iterable[torch.Tensor]]


def quantize_layer(
    layer: DecoderLayer, hidden: torch.Tensor, prefix: str, read: Read, recipe: Recipe
) -> Iterator[Rounded]:
    """Yields every linear of the layer, rounded. hidden [windows, seq_len, width] is replaced by the layer's output.

    read gives the original weight of a linear by its full tensor name. Raises NumericError where an input of a linear
    holds NaN or Inf.
    """
    arch = layer.arch.layer
    solve = _Solve(layer, prefix, read, recipe)

    def part(inputs: Callable[[torch.Tensor], torch.Tensor]) -> Chunks:
        return lambda: (inputs(chunk.to(layer.cos_sin[0].device)) for chunk in chunked(hidden))

    yield from solve(arch.qkv, part(layer.attention_input))
    attended = _kept(part(lambda x: layer.attention(layer.attention_input(x))), hidden, arch.attention_out, layer)
    yield from solve((arch.attention_out,), attended)
    _add(hidden, (layer.apply(arch.attention_out, x) for x in attended()))
    del attended
    yield from solve(arch.gate_up, part(layer.mlp_input))
    gated = _kept(part(lambda x: layer.gated(layer.mlp_input(x))), hidden, arch.down, layer)
    yield from solve((arch.down,), gated)
    _add(hidden, (layer.apply(arch.down, x) for x in gated()))


def _add(hidden: torch.Tensor, outputs: Iterable[torch.Tensor]) -> None:
    for chunk, output in zip(chunked(hidden), outputs, strict=True):
        chunk += output.to(chunk.device)


def _kept(chunks: Chunks, hidden: torch.Tensor, linear: str, layer: DecoderLayer) -> Chunks:
    """The inputs of `linear`, kept in memory where they are small, else computed again on each pass."""
    tokens = hidden.shape[0] * hidden.shape[1]
    if tokens * layer.weight(linear).shape[1] * hidden.element_size() > KEPT_LIMIT:
        return chunks
    held = [chunk.to(hidden.device) for chunk in chunks()]
    return lambda: held


@dataclass(frozen=True, eq=False)
class _Solve:
    layer: DecoderLayer
    prefix: str
    read: Read
    recipe: Recipe

    def __call__(self, linears: tuple[str, ...], inputs: Chunks) -> Iterator[Rounded]:
        """Rounds the linears that share an input as one stack and puts the result into the layer."""
        recipe = self.recipe
        originals = [self.read(f"{self.prefix}{name}.weight") for name in linears]
        device = self.layer.weight(linears[0]).device
        stats = gather(inputs(), originals[0].shape[1], device)
        if not stats.finite:
            raise NumericError(
                f"the inputs of {self.prefix}{linears[0]} hold NaN or Inf on the calibration text",
                "use --dtype float32; if that does not help, the model itself overflows on this text",
            )
        solved = gptq.quantize(
            torch.cat([w.to(device, torch.float32) for w in originals]),
            stats,
            recipe.grid,
            search=recipe.scale_search,
            act_order=recipe.act_order,
            damping=recipe.damping,
        )
        start = 0
        for name, original in zip(linears, originals, strict=True):
            stop = start + len(original)
            q = solved.qlinear.rows(start, stop)
            self.layer.set_weight(name, torch.from_numpy(q.dequantize()))
            yield Rounded(name, q, _report(self.prefix + name, solved, slice(start, stop)))
            start = stop


def _report(name: str, solved: gptq.Solved, rows: slice) -> LinearReport:
    loss, energy = float(solved.loss[rows].sum()), float(solved.energy[rows].sum())
    return LinearReport(
        name=name,
        loss=loss,
        relative_loss=loss / energy if energy else 0.0,
        damping=solved.damping,
        dead_columns=solved.dead,
        rows_nearest=int(np.count_nonzero(solved.rows_nearest[rows])),
        fallback=solved.fallback,
    )

"""Which input channels of every linear matter: the sums of w x**2 over its inputs x on a calibration text.

Every token counts alike, w = 1, or in each linear by the norm of its gradient there, if a sensitivity pass was made.
The model runs layer by layer with its own weights, one layer in memory. It does not know what is made of the sums.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from r1quant.engine.forward import Decoder
from r1quant.engine.layer_pass import LayerPass
from r1quant.engine.sensitivity import Sensitivity
from r1quant.errors import NumericError
from r1quant.jobs.quantize.sensitivity import Sensitivities
from r1quant.progress import Progress, Silent


@dataclass(frozen=True, eq=False)
class Importance:
    """sums: float64 [in] by the name of the linear, the diagonal of the sum of w x x^T; tokens: how many inputs x were
    summed, w being 1 on average."""

    sums: Mapping[str, npt.NDArray[np.float64]]
    tokens: int


def importance(
    decoder: Decoder,
    tokens: npt.NDArray[np.int64],
    guidance: Sensitivities | None = None,
    progress: Progress | None = None,
) -> Importance:
    """The importance of the input channels of every linear in the decoder layers.

    tokens    int64 [windows, seq_len]
    guidance  of the pass over these tokens; None if all of them count alike

    Raises NumericError if an input of a linear holds NaN or Inf.
    """
    progress = progress or Silent()
    sums: dict[str, npt.NDArray[np.float64]] = {}
    with torch.no_grad():
        hidden = decoder.embed(torch.from_numpy(tokens))
        progress.begin("importance", len(decoder))
        for index in range(len(decoder)):
            prefix = decoder.arch.layer_prefix(index)
            needed = None if guidance is None else guidance.layer(index)
            with decoder.layer(index) as layer:
                for linear, found in _layer(LayerPass(layer, hidden), needed):
                    if not bool(np.isfinite(found).all()):
                        raise NumericError.overflow(f"the inputs of {prefix}{linear} hold")
                    sums[prefix + linear] = found
            progress.advance(1, f"layer {index + 1}/{len(decoder)}")
    return Importance(sums, int(tokens.size))


def _layer(
    layer_pass: LayerPass, guidance: Mapping[str, Sensitivity] | None
) -> Iterator[tuple[str, npt.NDArray[np.float64]]]:
    """The sums of each linear. The hidden states of the pass are replaced by the layer's output."""
    for stage, inputs in layer_pass.stages():
        if guidance is None:
            counts = torch.ones(1, layer_pass.hidden.shape[0] * layer_pass.hidden.shape[1])
        else:
            counts = torch.stack([guidance[linear].norms for linear in stage.linears])
        sums = _sums(inputs(), counts)
        yield from zip(stage.linears, np.broadcast_to(sums, (len(stage.linears), sums.shape[1])), strict=True)


def _sums(inputs: Iterable[torch.Tensor], counts: torch.Tensor) -> npt.NDArray[np.float64]:
    """inputs [..., K] of T tokens in all, counts float32 [n, T] -> float64 [n, K]. A square of bfloat16 is exact in
    float32."""
    parts, start = [], 0
    for chunk in inputs:
        squares = chunk.reshape(-1, chunk.shape[-1]).to(torch.float32).square()
        stop = start + len(squares)
        weights = counts[:, start:stop, None].to(squares.device)
        parts.append(torch.stack([(squares * weight).sum(0, dtype=torch.float64) for weight in weights]))
        start = stop
    return torch.stack(parts).sum(0).cpu().numpy()

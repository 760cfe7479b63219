"""Which input channels of every linear matter: the sums of x**2 over its inputs x on a calibration text.

The model runs layer by layer with its own weights, one layer in memory. It knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from r1quant.archs import Architecture
from r1quant.errors import NumericError
from r1quant.forward import Decoder, DecoderLayer, Weights, chunked
from r1quant.progress import Progress, Silent


@dataclass(frozen=True, eq=False)
class Importance:
    """sums: float64 [in] by the name of the linear, the diagonal of X^T X; tokens: how many inputs were summed."""

    sums: Mapping[str, npt.NDArray[np.float64]]
    tokens: int


def importance(
    weights: Weights,
    arch: Architecture,
    tokens: npt.NDArray[np.int64],
    device: torch.device,
    dtype: torch.dtype,
    progress: Progress | None = None,
) -> Importance:
    """The importance of the input channels of every linear in the decoder layers. tokens: int64 [windows, seq_len].

    Raises NumericError where an input of a linear holds NaN or Inf.
    """
    progress = progress or Silent()
    sums: dict[str, npt.NDArray[np.float64]] = {}
    with torch.inference_mode():
        decoder = Decoder(weights, arch, device, dtype, tokens.shape[1])
        hidden = decoder.embed(torch.from_numpy(tokens))
        progress.begin("importance", len(decoder))
        for index in range(len(decoder)):
            prefix = arch.layer_prefix(index)
            with decoder.layer(index) as layer:
                for stage, found in zip(arch.layer.stages, _through(layer, hidden), strict=True):
                    if not bool(np.isfinite(found).all()):
                        raise NumericError(
                            f"the inputs of {prefix}{stage[0]} hold NaN or Inf on the calibration text",
                            "use --dtype float32; if that does not help, the model itself overflows on this text",
                        )
                    sums |= {prefix + linear: found for linear in stage}
            progress.advance(1, f"layer {index + 1}/{len(decoder)}")
    return Importance(sums, int(tokens.size))


def _through(layer: DecoderLayer, hidden: torch.Tensor) -> list[npt.NDArray[np.float64]]:
    """Replaces hidden [windows, seq_len, width] by the layer's output; gives the sums of its four stages."""
    arch, parts = layer.arch.layer, []
    for chunk in chunked(hidden):
        x = chunk.to(layer.cos_sin[0].device)
        normed = layer.attention_input(x)
        attended = layer.attention(normed)
        x = x + layer.apply(arch.attention_out, attended)
        mlp = layer.mlp_input(x)
        gated = layer.gated(mlp)
        parts.append([_squares(inputs) for inputs in (normed, attended, mlp, gated)])
        chunk.copy_(x + layer.apply(arch.down, gated))
    return [_total(stage) for stage in zip(*parts, strict=True)]


def _squares(inputs: torch.Tensor) -> torch.Tensor:
    """[..., K] -> float64 [K]. A square of bfloat16 is exact in float32."""
    return inputs.reshape(-1, inputs.shape[-1]).to(torch.float32).square().sum(0, dtype=torch.float64)


def _total(parts: Iterable[torch.Tensor]) -> npt.NDArray[np.float64]:
    return torch.stack(list(parts)).sum(0).cpu().numpy()

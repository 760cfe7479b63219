"""Scores text with torch, one decoder layer in memory at a time, quantized weights dequantized as they are read."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from r1quant.archs import Architecture
from r1quant.errors import NumericError
from r1quant.forward import Decoder, Head, Weights, chunked
from r1quant.metrics.divergence import TokenScores

TOKENS_PER_HEAD = 256


def final_hidden(decoder: Decoder, tokens: npt.NDArray[np.int64], step: Callable[[], None]) -> torch.Tensor:
    """The hidden states [windows, seq_len, hidden] that the head reads. step is called after each layer."""
    with torch.inference_mode():
        hidden = decoder.embed(torch.from_numpy(tokens))
        for index in range(len(decoder)):
            with decoder.layer(index) as layer:
                for chunk in chunked(hidden):
                    chunk.copy_(layer(chunk.to(decoder.device)))
            step()
        return decoder.final_norm(hidden)


class TorchModel:
    """A model run layer by layer in float32 on the CPU: the reference that other runtimes are held against."""

    def __init__(self, weights: Weights, arch: Architecture) -> None:
        self._weights, self._arch = weights, arch

    def logits(self, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """int64 [n] -> float32 [n, vocabulary]."""
        decoder = Decoder(self._weights, self._arch, torch.device("cpu"), torch.float32, len(tokens))
        hidden = final_hidden(decoder, tokens[None], lambda: None)[0]
        with torch.inference_mode():
            logits: npt.NDArray[np.float32] = decoder.head().logits(hidden).numpy()
        return logits

    def generate(self, tokens: npt.NDArray[np.int64], count: int) -> list[int]:
        """The `count` tokens that follow, each the likeliest, whole text anew for each: slow, and plain."""
        text = list(map(int, tokens))
        for _ in range(count):
            text.append(int(self.logits(np.array(text))[-1].argmax()))
        return text[len(tokens) :]


def compare(
    baseline: Weights,
    quantized: Weights,
    arch: Architecture,
    tokens: npt.NDArray[np.int64],
    device: torch.device,
    dtype: torch.dtype,
    step: Callable[[], None] = lambda: None,
) -> TokenScores:
    """Both models on tokens int64 [windows, seq_len], one after the other.

    Only their final hidden states are held; full distributions exist for a few hundred tokens at a time, in float32,
    and the divergence is summed in float64. Raises NumericError where a model gives NaN or Inf.
    """
    states, heads = [], []
    for name, weights in (("baseline", baseline), ("quantized model", quantized)):
        decoder = Decoder(weights, arch, device, dtype, tokens.shape[1])
        hidden = final_hidden(decoder, tokens, step)[:, :-1].flatten(0, 1)
        if not bool(torch.isfinite(hidden).all()):
            raise NumericError(f"the {name} gives NaN or Inf on this text", "use --dtype float32")
        states.append(hidden)
        heads.append(decoder.head())
    targets = torch.from_numpy(tokens)[:, 1:].flatten()
    with torch.inference_mode():
        parts = [
            _score(states, heads, targets, slice(start, start + TOKENS_PER_HEAD))
            for start in range(0, len(targets), TOKENS_PER_HEAD)
        ]
    nll_baseline, nll_quantized, kl, same = (torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True))
    return TokenScores(nll_baseline, nll_quantized, kl, same)


def _score(
    states: list[torch.Tensor], heads: list[Head], targets: torch.Tensor, where: slice
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    p, q = (head.logits(state[where]).log_softmax(1) for head, state in zip(heads, states, strict=True))
    wanted = targets[where].to(p.device)[:, None]
    kl = ((p - q) * p.exp()).sum(1, dtype=torch.float64).clamp_min(0)
    nll = [-scores.gather(1, wanted)[:, 0].double() for scores in (p, q)]
    return nll[0], nll[1], kl, p.argmax(1) == q.argmax(1)

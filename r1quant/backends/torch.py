"""Scores text with torch, one decoder layer in memory at a time, quantized weights dequantized as they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from r1quant.archs import Architecture
from r1quant.errors import NumericError
from r1quant.forward import Decoder, Weights, chunked
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


class Runtime(Protocol):
    """A model in the runtime that serves it."""

    def logits(self, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """int64 [n] -> float32 [n, vocabulary]."""


def compare(
    baseline: Weights,
    quantized: Weights | Runtime,
    arch: Architecture,
    tokens: npt.NDArray[np.int64],
    device: torch.device,
    dtype: torch.dtype,
    step: Callable[[], None] = lambda: None,
) -> TokenScores:
    """Both models on tokens int64 [windows, seq_len], one after the other; the second one from its weights, here, or
    in a runtime of its own.

    Only final hidden states are held; full distributions exist for a few hundred tokens (of a runtime, for one window)
    at a time, in float32, and the divergence is summed in float64. Raises NumericError where a model gives NaN or Inf.
    """
    first = _distributions("baseline", baseline, arch, tokens, device, dtype, step)
    second = (
        _distributions("quantized model", quantized, arch, tokens, device, dtype, step)
        if isinstance(quantized, Weights)
        else _of_runtime(quantized, tokens, device, step)
    )
    parts = []
    with torch.inference_mode():
        for (where, p), (_, q) in zip(first, second, strict=True):
            wanted = torch.from_numpy(tokens[where[0], where[1] + 1 : where[2] + 1]).to(p.device)[:, None]
            kl = ((p - q) * p.exp()).sum(1, dtype=torch.float64).clamp_min(0)
            nll = [-scores.gather(1, wanted)[:, 0].double() for scores in (p, q)]
            parts.append((nll[0], nll[1], kl, p.argmax(1) == q.argmax(1)))
    columns = (torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True))
    return TokenScores(*columns)


Piece = tuple[tuple[int, int, int], torch.Tensor]  # window, start, stop; log-probabilities of those tokens


def _pieces(tokens: npt.NDArray[np.int64]) -> Iterator[tuple[int, int, int]]:
    windows, seq_len = tokens.shape
    for window in range(windows):
        for start in range(0, seq_len - 1, TOKENS_PER_HEAD):
            yield window, start, min(start + TOKENS_PER_HEAD, seq_len - 1)


def _distributions(
    name: str,
    weights: Weights,
    arch: Architecture,
    tokens: npt.NDArray[np.int64],
    device: torch.device,
    dtype: torch.dtype,
    step: Callable[[], None],
) -> Iterator[Piece]:
    """What a model predicts, some tokens at a time. Its layers run now, its head as this is read."""
    decoder = Decoder(weights, arch, device, dtype, tokens.shape[1])
    hidden = final_hidden(decoder, tokens, step)
    if not bool(torch.isfinite(hidden).all()):
        raise NumericError(f"the {name} gives NaN or Inf on this text", "use --dtype float32")
    head = decoder.head()
    return ((at, head.logits(hidden[at[0], at[1] : at[2]]).log_softmax(1)) for at in _pieces(tokens))


def _of_runtime(
    runtime: Runtime, tokens: npt.NDArray[np.int64], device: torch.device, step: Callable[[], None]
) -> Iterator[Piece]:
    held = torch.empty(0)
    for at in _pieces(tokens):
        if at[1] == 0:
            logits = runtime.logits(tokens[at[0]])
            if not bool(np.isfinite(logits).all()):
                raise NumericError("the runtime gives NaN or Inf on this text", "verify it with --backend torch")
            held = torch.from_numpy(logits).to(device)
            step()
        yield at, held[at[1] : at[2]].log_softmax(1)

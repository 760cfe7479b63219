"""Runs a model with torch from its weights, dequantized as they are read: the reference that other runtimes face.

A text goes through one decoder layer in memory at a time; completions keep as many layers as memory allows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from r1quant.arch.tables import Architecture
from r1quant.backends import Completion, Prompt, Sampling
from r1quant.backends.distance import Projected
from r1quant.backends.generation import SLOTS, Engine
from r1quant.engine.forward import Decoder, TensorSource, chunked

CPU = torch.device("cpu")
TOKENS_PER_CHUNK = 1024  # that go through a layer at a time: their activations stay in a processor's cache


class TorchModel:
    """A model as its weights are. slots: the most texts completed at a time; chosen by memory if it is None."""

    name = "torch"

    def __init__(
        self,
        weights: TensorSource,
        arch: Architecture,
        device: torch.device = CPU,
        dtype: torch.dtype = torch.float32,
        slots: int | None = None,
    ) -> None:
        self._weights, self._arch, self._device, self._dtype, self._slots = weights, arch, device, dtype, slots

    @property
    def layers(self) -> int:
        """How many steps `final_states` takes."""
        return int(self._weights.config["num_hidden_layers"])

    def final_states(self, tokens: npt.NDArray[np.int64], step: Callable[[], None] = lambda: None) -> torch.Tensor:
        """tokens int64 [windows, seq_len] -> [windows, seq_len, hidden] on the host: what the head reads.

        step is called after each layer.
        """
        decoder = self._decoder(tokens.shape[1])
        with torch.inference_mode():
            hidden = decoder.embed(torch.from_numpy(tokens))
            for index in range(len(decoder)):
                with decoder.layer(index) as layer:
                    for chunk in chunked(hidden, TOKENS_PER_CHUNK):
                        chunk.copy_(layer(chunk.to(decoder.device)))
                step()
            return decoder.final_norm(hidden)

    def projected(self, states: torch.Tensor) -> Projected:
        """The logits of final states [n, hidden], made as they are asked for."""
        return Projected(states, self._decoder(1).head().weight, self._device)

    def logits(self, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """int64 [n] -> float32 [n, vocabulary]."""
        logits = self.projected(self.final_states(tokens[None])[0])
        found: npt.NDArray[np.float32] = torch.cat(list(logits.pieces())).cpu().numpy()
        return found

    def complete(self, prompts: Iterable[Prompt], sampling: Sampling, stop: frozenset[int]) -> Iterator[Completion]:
        """Many at a time; see r1quant.backends.generation."""
        return self._engine.complete(prompts, sampling, stop)

    @property
    def resident(self) -> bool:
        """Whether completions find all weights in memory; if not, they are read again for every token."""
        return self._engine.resident

    @property
    def at_once(self) -> int:
        """The most texts that were completed at the same time so far."""
        return self._engine.at_once

    def holds(self, tokens: int) -> int:
        """How many texts of so many tokens, prompts included, can be completed at the same time."""
        return self._engine.holds(tokens)

    @cached_property
    def _engine(self) -> Engine:
        return Engine(self._weights, self._arch, self._device, self._dtype, self._slots or SLOTS)

    def generate(self, tokens: npt.NDArray[np.int64], count: int) -> list[int]:
        """The `count` tokens that follow, each the likeliest."""
        prompt = Prompt("", (), tuple(map(int, tokens)))
        (made,) = self.complete([prompt], Sampling(temperature=0, max_tokens=count), frozenset())
        return list(made.ids)

    def _decoder(self, seq_len: int) -> Decoder:
        return Decoder(self._weights, self._arch, self._device, self._dtype, seq_len)

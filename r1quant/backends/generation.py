"""Completes many prompts at once in torch: continuous batching over a cache in which every text has a row.

A text that ends leaves its row to the next prompt, so the batch stays full, and texts of different lengths share it
without padding on the left. The layers are transformers' own modules, filled with dequantized weights: all of them at
once if they fit in memory, else one after the other at each step, which is slow, and runs any model.
It does not know how weights are stored, nor what the texts are about.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from r1quant.arch.tables import Architecture, head_dim, size
from r1quant.backends import Completion, Prompt, Sampling
from r1quant.backends.memory import free_bytes
from r1quant.backends.sampling import check_finite, choose, completion, room
from r1quant.core.json import Config
from r1quant.engine.forward import TensorSource, head_name, layer_state, scaled, skeleton
from r1quant.engine.positions import Rotary, sliding_windows

SLOTS = 64
TOKENS_PER_CALL = 2048  # of prompts
STEP = 64  # the cache grows by multiples of so many positions
ALIGNED = 8  # masks of such widths need no copy in CUDA's kernels
FOR_WEIGHTS, FOR_CACHE = 0.8, 0.6  # of the memory that is free before and after the weights are loaded


class Engine:
    """A model that completes prompts. It may be used for one batch after the other, not for two at once.

    slots     the most texts at once, SLOTS if None. Fewer run if their keys and values might outgrow FOR_CACHE
              of the memory that is left beside the weights; a text counts with the most tokens it may get, so one that
              was begun is never short of memory
    resident  whether all weights are kept in the compute dtype; None keeps them if they take at most FOR_WEIGHTS of the
              memory that is free

    at_once is the most texts that ran at the same time so far.
    """

    def __init__(
        self,
        weights: TensorSource,
        arch: Architecture,
        device: torch.device,
        dtype: torch.dtype,
        slots: int | None = None,
        resident: bool | None = None,
    ) -> None:
        """Raises CheckpointError if the library cannot build a model from the config."""
        if resident is None:
            resident = weight_bytes(weights, arch, dtype) <= FOR_WEIGHTS * free_bytes(device)
        self._network = Network(weights, arch, device, dtype, resident)
        self._slots, self.resident, self.at_once = slots or SLOTS, resident, 0
        self._places = int(FOR_CACHE * free_bytes(device)) // token_bytes(weights.config, dtype)

    def complete(self, prompts: Iterable[Prompt], sampling: Sampling, stop: frozenset[int]) -> Iterator[Completion]:
        """Completions as they end. Prompts are drawn as there is room; each must have tokens.

        A text is cut at sampling.max_tokens, and when the model's max_position_embeddings are full: a prompt that
        alone does not fit gets no token. Raises RecipeError for tokens that the model does not have, NumericError
        if it gives NaN or Inf.
        """
        batch = Batch(self._network, sampling, stop)
        queue = _Queue(prompts, sampling, self._network.context, self._network.vocabulary)
        while True:
            fresh: list[PendingText] = []
            while (text := queue.next) and self._fits([*batch.texts, *fresh, text]):
                queue.drop()
                if text.most:
                    fresh.append(text)
                else:
                    yield completion(text.prompt, (), (), stop)
            self.at_once = max(self.at_once, len(batch.texts) + len(fresh))
            if fresh:
                yield from batch.admit(fresh)
            elif batch.texts:
                yield from batch.step()
            else:
                return

    def holds(self, tokens: int) -> int:
        """How many texts of so many tokens, prompts included, may run at once."""
        return max(1, min(self._slots, self._places // tokens))

    def _fits(self, texts: Sequence[PendingText]) -> bool:
        """Whether the cache holds these texts at their longest. One text is always tried."""
        longest = max(text.longest for text in texts)
        return len(texts) == 1 or (len(texts) <= self._slots and len(texts) * longest <= self._places)


@dataclass(eq=False)
class PendingText:
    """A text in the making: the tokens it got so far, of at most `most`, and when."""

    prompt: Prompt
    most: int
    draws: np.random.Generator
    ids: list[int] = field(default_factory=list)
    moments: list[float] = field(default_factory=list)
    begun: float = 0.0

    @property
    def position(self) -> int:
        """Of its last token, which is not in the cache yet."""
        return len(self.prompt.tokens) + len(self.ids) - 1

    @property
    def longest(self) -> int:
        """Positions of the cache that it may take."""
        return len(self.prompt.tokens) + self.most


class _Queue:
    """Prompts that wait, as texts; the next one can be looked at before it is taken."""

    def __init__(self, prompts: Iterable[Prompt], sampling: Sampling, context: int, vocabulary: int) -> None:
        self._prompts, self._sampling = iter(prompts), sampling
        self._context, self._vocabulary = context, vocabulary
        self._held: PendingText | None = None

    @property
    def next(self) -> PendingText | None:
        if self._held is None:
            prompt = next(self._prompts, None)
            if prompt is not None:
                most = room(prompt, self._sampling, self._context, self._vocabulary)
                self._held = PendingText(prompt, most, np.random.default_rng(prompt.seed))
        return self._held

    def drop(self) -> None:
        self._held = None


class Batch:
    """The texts that run together; text i has row i of the cache."""

    def __init__(self, network: Network, sampling: Sampling, stop: frozenset[int]) -> None:
        self._network, self._sampling, self._stop = network, sampling, stop
        self._cache = SlotCache(network.layers)
        self.texts: list[PendingText] = []

    @torch.inference_mode()
    def admit(self, fresh: Sequence[PendingText]) -> list[Completion]:
        """Reads prompts and draws the first token of each. Gives those that ended with it."""
        lengths = [len(text.prompt.tokens) for text in fresh]
        self._cache.reserve(len(self.texts) + len(fresh), max(self._extent(), *lengths), len(self.texts))
        ended = []
        for part in _parts(fresh):
            begun, first = time.perf_counter(), len(self.texts)
            for text in part:
                text.begun = begun
            self.texts += part
            ended += self._draw(part, self._network.prefill([t.prompt.tokens for t in part], self._cache, first))
        return self._leave(ended)

    @torch.inference_mode()
    def step(self) -> list[Completion]:
        """One token for every text. Gives those that ended."""
        count, extent = len(self.texts), self._extent()
        self._cache.reserve(count, extent, count)
        tokens, positions = [text.ids[-1] for text in self.texts], [text.position for text in self.texts]
        return self._leave(self._draw(self.texts, self._network.decode(tokens, positions, extent, self._cache)))

    def _extent(self) -> int:
        longest = max((text.position for text in self.texts), default=0) + 1
        return -(-longest // ALIGNED) * ALIGNED

    def _draw(self, texts: Sequence[PendingText], logits: torch.Tensor) -> list[PendingText]:
        """Adds a token to each text; gives those that end with it."""
        check_finite(logits)
        u = torch.tensor([text.draws.random() for text in texts], dtype=torch.float64, device=logits.device)
        chosen = choose(logits, self._sampling, u).tolist()
        now = time.perf_counter()
        for text, token in zip(texts, chosen, strict=True):
            text.ids.append(token)
            text.moments.append(now - text.begun)
        return [text for text in texts if text.ids[-1] in self._stop or len(text.ids) == text.most]

    def _leave(self, ended: Sequence[PendingText]) -> list[Completion]:
        """Takes texts out of the batch; the last rows move to their places."""
        for text in ended:
            index, last = self.texts.index(text), self.texts.pop()
            if last is not text:
                self._cache.move(len(self.texts), index, last.position)
                self.texts[index] = last
        return [completion(text.prompt, text.ids, text.moments, self._stop) for text in ended]


def _parts(texts: Sequence[PendingText]) -> Iterator[list[PendingText]]:
    """Texts in their order, as many together as fill one call when all are as long as the longest."""
    part: list[PendingText] = []
    for text in texts:
        longest = max(len(other.prompt.tokens) for other in (*part, text))
        if part and longest * (len(part) + 1) > TOKENS_PER_CALL:
            yield part
            part = []
        part.append(text)
    if part:
        yield part


class SlotCache:
    """Keys and values, to be given to attention modules as past_key_values: a row a text, all from position 0.

    What lies behind the end of a text, of an older one or of padding, is finite, and hidden by masks. Rows and
    positions are added when they are needed, so memory follows the longest text in the batch.
    """

    def __init__(self, layers: int) -> None:
        self._kept: list[tuple[torch.Tensor, torch.Tensor] | None] = [None] * layers
        self._rows = self._capacity = self._live = 0
        self._where: tuple[Any, Any] = (slice(0), slice(0))
        self._seen: tuple[slice, int] = (slice(0), 0)

    def reserve(self, rows: int, length: int, live: int) -> None:
        """Makes room for so many rows and positions. The first `live` rows are kept."""
        if rows <= self._rows and length <= self._capacity:
            return
        more = length + length // 4 if length > self._capacity else length
        self._rows, self._capacity = rows, -(-more // STEP) * STEP
        for index, pair in enumerate(self._kept):
            if pair is not None:
                self._kept[index] = tuple(self._grown(old, live) for old in pair)  # type: ignore[assignment]

    def _grown(self, old: torch.Tensor, live: int) -> torch.Tensor:
        new = old.new_zeros((self._rows, old.shape[1], self._capacity, old.shape[3]))
        length = min(self._capacity, old.shape[2])
        new[:live, :, :length] = old[:live, :, :length]
        return new

    def write_block(self, first: int, rows: int, start: int, stop: int) -> None:
        """The next updates are positions start .. stop of the rows from `first`."""
        self._where = slice(first, first + rows), slice(start, stop)
        self._seen = slice(first, first + rows), stop

    def write_each(self, positions: torch.Tensor, extent: int) -> None:
        """The next updates are one position of each row; attention is shown the first `extent`."""
        rows = len(positions)
        self._where = torch.arange(rows, device=positions.device), positions
        self._seen = slice(rows), extent

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[rows, kv_heads, new, head_dim] each -> all of them, [rows, kv_heads, extent, head_dim]."""
        pair = self._kept[layer]
        if pair is None:
            shape = (self._rows, keys.shape[1], self._capacity, keys.shape[3])
            pair = self._kept[layer] = keys.new_zeros(shape), values.new_zeros(shape)
        rows, positions = self._where
        shown, extent = self._seen
        for store, new in zip(pair, (keys, values), strict=True):
            store[rows, :, positions] = new if isinstance(rows, slice) else new[:, :, 0]
        return pair[0][shown, :, :extent], pair[1][shown, :, :extent]

    def move(self, source: int, target: int, length: int) -> None:
        """One row over another."""
        for pair in self._kept:
            for store in pair or ():
                store[target, :, :length] = store[source, :, :length]


class Network:
    """The model as two functions: read prompts, and go on by one token."""

    def __init__(
        self, weights: TensorSource, arch: Architecture, device: torch.device, dtype: torch.dtype, resident: bool
    ) -> None:
        self._weights, self._arch, self._device, self._dtype = weights, arch, device, dtype
        model = skeleton(weights.config, arch)
        self._layers: nn.ModuleList = model.model.layers
        self._norm: nn.Module = model.model.norm
        self._norm.load_state_dict({"weight": self._read(arch.tensors.final_norm)}, assign=True)
        self._rotary = Rotary(model, device)
        self._windows = sliding_windows(model.config)
        self._embedding = self._read(arch.tensors.embedding)
        head = head_name(weights, arch)
        self._head = self._embedding if head == arch.tensors.embedding else self._read(head)
        self._resident = resident
        if resident:
            for index in range(len(self._layers)):
                self._fill(index)
        self.context = size(weights.config, "max_position_embeddings")
        self.vocabulary = len(self._head)

    @property
    def layers(self) -> int:
        return len(self._layers)

    def prefill(self, prompts: Sequence[Sequence[int]], cache: SlotCache, first: int) -> torch.Tensor:
        """Prompts into the rows from `first` -> float32 [prompts, vocabulary]: what follows each.

        They are padded on the right, where no token of a text sees. One alone is read in pieces of TOKENS_PER_CALL.
        """
        width = max(map(len, prompts))
        tokens = torch.tensor([[*prompt, *[0] * (width - len(prompt))] for prompt in prompts])
        hidden = torch.empty(0)
        for start in range(0, width, width if len(prompts) > 1 else TOKENS_PER_CALL):
            part = tokens[:, start : start + TOKENS_PER_CALL] if len(prompts) == 1 else tokens
            stop = start + part.shape[1]
            positions = torch.arange(start, stop, device=self._device)
            cache.write_block(first, len(prompts), start, stop)
            hidden = self._run(part, positions[None], self._block_masks(positions), cache)
        last = [len(prompt) - 1 - start for prompt in prompts]
        return self._logits(hidden[torch.arange(len(prompts)), last])

    def decode(self, tokens: Sequence[int], positions: Sequence[int], extent: int, cache: SlotCache) -> torch.Tensor:
        """The last token of each row, at its position below extent -> float32 [rows, vocabulary]."""
        at = torch.tensor(positions, device=self._device)
        cache.write_each(at, extent)
        hidden = self._run(torch.tensor(tokens)[:, None], at[:, None], self._masks(at[:, None], extent), cache)
        return self._logits(hidden[:, 0])

    def _run(
        self, tokens: torch.Tensor, positions: torch.Tensor, masks: Mapping[int | None, torch.Tensor | None], cache: Any
    ) -> torch.Tensor:
        """[rows, new] -> hidden states [rows, new, hidden]."""
        embedded = functional.embedding(tokens.to(self._device), self._embedding)
        hidden = scaled(embedded, self._weights.config, self._arch)
        cos_sin = self._rotary(hidden, positions)
        for index, window in enumerate(self._windows):
            rest = {"attention_mask": masks[window], "past_key_values": cache, "position_embeddings": cos_sin[index]}
            with self._layer(index) as layer:
                hidden = layer(hidden, **rest)
        return hidden

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return functional.linear(self._norm(hidden), self._head).float()

    def _block_masks(self, positions: torch.Tensor) -> dict[int | None, torch.Tensor | None]:
        """By window; None, which is causal, if the block is the begin of a text and no window is narrower."""
        stop = int(positions[-1]) + 1
        whole = len(positions) == stop
        masks = self._masks(positions[None], stop)
        return {w: None if whole and (w is None or w >= stop) else mask for w, mask in masks.items()}

    def _masks(self, positions: torch.Tensor, extent: int) -> dict[int | None, torch.Tensor]:
        """By window: which of the first `extent` positions the tokens at positions [rows, new] see, [rows, 1, new,
        extent]."""
        at, keys = positions[:, None, :, None], torch.arange(extent, device=self._device)
        seen = keys <= at
        return {window: seen if window is None else seen & (keys > at - window) for window in set(self._windows)}

    @contextmanager
    def _layer(self, index: int) -> Iterator[nn.Module]:
        if self._resident:
            yield self._layers[index]
            return
        self._fill(index)
        try:
            yield self._layers[index]
        finally:
            self._layers[index].to("meta")

    def _fill(self, index: int) -> None:
        state = layer_state(self._weights, self._arch, index, self._device, self._dtype)
        self._layers[index].load_state_dict(state, assign=True)

    def _read(self, name: str) -> torch.Tensor:
        return self._weights.read(name).to(self._device, self._dtype)


def weight_bytes(weights: TensorSource, arch: Architecture, dtype: torch.dtype) -> int:
    """What all weights take when they are dequantized."""
    shapes = arch.shapes(weights.config)
    return sum(int(np.prod(shapes[name])) for name in weights.tensors if name in shapes) * dtype.itemsize


def token_bytes(config: Config, dtype: torch.dtype) -> int:
    """What the keys and values of one position take in all layers."""
    heads = size(config, "num_key_value_heads", size(config, "num_attention_heads"))
    return 2 * size(config, "num_hidden_layers") * heads * head_dim(config) * dtype.itemsize

"""Runs a decoder with one layer in memory, in the library's own model code.

The model is built on the meta device, where it costs nothing; a layer is filled with weights when its turn comes and
emptied afterwards. What happens inside a layer is told by engine/blocks.py.
It does not know how weights are stored or quantized: it asks a TensorSource for tensors by name.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from r1quant.arch import rope
from r1quant.arch.tables import Architecture, is_tied, size
from r1quant.core.json import Config
from r1quant.core.platforms import NO_MPS
from r1quant.engine.blocks import DecoderLayer
from r1quant.engine.positions import Rotary, sliding_windows
from r1quant.errors import CheckpointError, RecipeError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TOKENS_PER_CHUNK = 2048  # that pass through a layer at a time: more of them leave the processor's cache
ROWS_PER_SLICE = 16384
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
REUSED_BLOCK, REUSED_BYTES = 1 << 27, 1 << 30


@runtime_checkable
class TensorSource(Protocol):
    """Tensors by name: a checkpoint, or a quantized one seen through its dequantized values."""

    @property
    def config(self) -> Config: ...
    @property
    def tensors(self) -> Mapping[str, object]: ...
    def read(self, name: str) -> torch.Tensor: ...


def pick_device(wanted: str) -> torch.device:
    """`auto` is the accelerator if there is one. Raises RecipeError for a device this machine lacks."""
    if wanted.partition(":")[0] == "mps":
        raise RecipeError(NO_MPS, "use --device cpu")
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    found = re.fullmatch(r"cpu|cuda(?::(\d+))?", wanted)
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not found or (wanted != "cpu" and int(found[1] or 0) >= cards):
        raise RecipeError(f"device {wanted!r} is not available here", "use --device cpu")
    return torch.device(wanted)


def pick_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the processor multiplies in it, else float32.

    The instruction set decides, not a measurement: a busy machine would measure otherwise than an idle one, and the
    same plan would give other bytes. Raises RecipeError for a name that is none of DTYPES.
    """
    if wanted not in ("auto", *DTYPES):
        raise RecipeError(f"dtype {wanted!r} is not supported", f"choose from auto, {', '.join(DTYPES)}")
    if wanted != "auto":
        return DTYPES[wanted]
    if device.type != "cpu":
        return torch.bfloat16
    tests = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    fast = any(getattr(torch.cpu, name, lambda: False)() for name in tests)
    return torch.bfloat16 if fast else torch.float32


def reuse() -> None:
    """Has the C library keep what is freed for the next tensor, if it would fetch each of them anew from the
    system: clearing its pages takes longer than most that is computed in it."""
    option = getattr(_libc(), "mallopt", None)
    if option is not None:
        option(M_MMAP_THRESHOLD, REUSED_BLOCK)
        option(M_TRIM_THRESHOLD, REUSED_BYTES)


def give_back() -> None:
    """Returns freed memory to the system, if the C library would keep it in holes between what is in use."""
    trim = getattr(_libc(), "malloc_trim", None)
    if trim is not None:
        trim(0)


@cache
def _libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if sys.platform == "linux" else None


def chunked(hidden: torch.Tensor, tokens: int = TOKENS_PER_CHUNK) -> Iterator[torch.Tensor]:
    """Views of hidden [windows, seq_len, width], whole windows, about so many tokens each."""
    per_chunk = max(1, tokens // hidden.shape[1])
    for start in range(0, len(hidden), per_chunk):
        yield hidden[start : start + per_chunk]


class Decoder:
    """A decoder-only model whose layers are filled one at a time from a TensorSource."""

    def __init__(
        self, weights: TensorSource, arch: Architecture, device: torch.device, dtype: torch.dtype, seq_len: int
    ) -> None:
        """Raises CheckpointError if the library cannot build a model from the config."""
        reuse()
        self.weights, self.arch, self.device, self.dtype = weights, arch, device, dtype
        model = skeleton(weights.config, arch)
        self._layers: nn.ModuleList = model.model.layers
        self._final_norm: nn.Module = model.model.norm
        position = torch.arange(seq_len, device=device)[None]
        self._cos_sin = Rotary(model, device)(torch.zeros(1, 1, device=device, dtype=dtype), position)
        self._windows = sliding_windows(model.config)
        self._seq_len = seq_len

    def __len__(self) -> int:
        return len(self._layers)

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens int64 [windows, seq_len] -> [windows, seq_len, hidden] in the compute dtype, on the host."""
        rows = self.weights.read(self.arch.tensors.embedding)[tokens].to(self.dtype)
        return scaled(rows, self.weights.config, self.arch)

    @contextmanager
    def layer(self, index: int) -> Iterator[DecoderLayer]:
        """Layer `index`, filled; its memory is given back when the block ends."""
        module = self._layers[index]
        module.load_state_dict(layer_state(self.weights, self.arch, index, self.device, self.dtype), assign=True)
        try:
            yield DecoderLayer(module, self.arch, self._cos_sin[index], self._mask(index))
        finally:
            module.to("meta")
            give_back()

    def final_norm(self, hidden: torch.Tensor) -> torch.Tensor:
        """The hidden states that the head reads."""
        weight = self.weights.read(self.arch.tensors.final_norm).to(self.device, self.dtype)
        self._final_norm.load_state_dict({"weight": weight}, assign=True)
        return torch.cat([self._final_norm(part.to(self.device)).to(hidden.device) for part in chunked(hidden)])

    def head(self, dtype: torch.dtype = torch.float32) -> Head:
        return Head(self.weights.read(head_name(self.weights, self.arch)), self.device, dtype)

    def _mask(self, index: int) -> torch.Tensor | None:
        """None means causal. A boolean [1, 1, S, S] if the layer's sliding window is shorter than the text."""
        window = self._windows[index]
        if window is None or window >= self._seq_len:
            return None
        position = torch.arange(self._seq_len, device=self.device)
        distance = position[:, None] - position[None, :]
        return ((distance >= 0) & (distance < window))[None, None]


@dataclass(frozen=True, eq=False)
class Head:
    """The output projection, kept in its stored dtype and cast to that of its products slice by slice.

    weight: [vocabulary, hidden]
    """

    weight: torch.Tensor
    device: torch.device
    dtype: torch.dtype

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[tokens, hidden] -> float32 [tokens, vocabulary]."""
        cast = hidden.to(self.device, self.dtype)
        return torch.cat([cast @ self._slice(i).T for i in range(0, len(self.weight), ROWS_PER_SLICE)], dim=1).float()

    def transposed(self, gradient: torch.Tensor) -> torch.Tensor:
        """[tokens, vocabulary], at the logits -> float32 [tokens, hidden], at what the head reads."""
        starts = range(0, len(self.weight), ROWS_PER_SLICE)
        parts = (gradient[:, i : i + ROWS_PER_SLICE].to(self.dtype) @ self._slice(i) for i in starts)
        return sum(parts, torch.zeros(len(gradient), self.weight.shape[1], device=self.device))

    def _slice(self, start: int) -> torch.Tensor:
        return self.weight[start : start + ROWS_PER_SLICE].to(self.device, self.dtype)


def scaled(embedded: torch.Tensor, config: Config, arch: Architecture) -> torch.Tensor:
    """What enters the first layer. embedded: rows of the embedding in the compute dtype, to which the factor is
    rounded too."""
    if not arch.tensors.scaled_embedding:
        return embedded
    return embedded * torch.tensor(size(config, "hidden_size") ** 0.5).to(embedded)


def layer_state(
    weights: TensorSource, arch: Architecture, index: int, device: torch.device, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """The tensors of decoder layer `index` under their names within it."""
    prefix, ignored = arch.layer_prefix(index), arch.tensors.ignored
    return {
        name.removeprefix(prefix): weights.read(name).to(device, dtype)
        for name in weights.tensors
        if name.startswith(prefix) and not name.endswith(ignored)
    }


def head_name(weights: TensorSource, arch: Architecture) -> str:
    """The tensor that scores tokens: the embedding where the two are tied."""
    tied = is_tied(weights.config) or arch.tensors.head not in weights.tensors
    return arch.tensors.embedding if tied else arch.tensors.head


def skeleton(config: Config, arch: Architecture) -> Any:
    """The library's model of a config.json on the meta device, without weights; attention by torch's own kernels.

    Raises CheckpointError if the library cannot build one.
    """
    import transformers

    transformers.logging.set_verbosity_error()
    try:
        parsed = transformers.AutoConfig.for_model(**{**rope.explicit(config), "model_type": arch.model_type})
        parsed._attn_implementation = "sdpa"
        with torch.device("meta"):
            model = getattr(transformers, arch.model_class)(parsed)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"config.json cannot be used: {reason}", "restore the model's own config.json") from error
    return model.eval().requires_grad_(False)

"""An artifact that is all in memory: quantized linears drawn at random within a tiny checkpoint's float tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from r1quant.arch.tables import architecture_of
from r1quant.checkpoint.artifact import CheckpointArtifact, LinearSpec
from r1quant.checkpoint.resolve import open_model
from r1quant.checkpoint.tensorfile import TensorSpec
from r1quant.core.blocklinear import BlockLinear
from r1quant.core.blocktypes import BLOCK_TYPES
from r1quant.core.qlinear import QLinear
from r1quant.formats.gguf.options import GgufOptions
from r1quant.formats.gguf.write import GgufFile, write

from .blocklinears import at_random, linear_of

LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


def random_linear(
    rng: np.random.Generator,
    shape: tuple[int, int],
    *,
    bits: int = 4,
    group_size: int = 32,
    symmetric: bool = True,
    significant: int = 11,
    signed: bool = True,
) -> QLinear:
    """Codes, zero points and scales over their whole ranges; scales have so many significant bits at most."""
    out, columns = shape
    groups = 1 if group_size == -1 else columns // group_size
    levels = 1 << bits
    zero = np.full((out, groups), levels // 2) if symmetric else rng.integers(0, levels, (out, groups))
    if not symmetric:
        zero.reshape(-1)[:1], zero.reshape(-1)[1:2] = 0, levels - 1
    fraction = rng.integers(1 << (significant - 1), 1 << significant, (out, groups))
    scale = fraction * 2.0 ** rng.integers(-20, -10, (out, groups)).astype(np.float64)
    scale *= rng.choice([-1, 1], (out, groups)) if signed else 1
    codes = rng.integers(0, levels, shape, np.uint8)
    codes.reshape(-1)[:2] = 0, levels - 1
    group = (np.arange(columns) // (columns // groups)).astype(np.int32)
    return QLinear(codes, scale.astype(np.float16), zero.astype(np.uint8), group, bits)


# Changes to a tiny model by which every row is whole super-blocks.
WIDE: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 512, "vocab_size": 512, "head_dim": 64}


@dataclass(frozen=True)
class Held(CheckpointArtifact):
    """A checkpoint whose linears in `linears` are quantized instead."""

    linears: Mapping[str, Any] = field(repr=False)
    changes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def format(self) -> str:
        return "held"

    @property
    def config(self) -> Mapping[str, Any]:
        return {**self.checkpoint.config, **self.changes}

    @cached_property
    def linear_specs(self) -> Mapping[str, LinearSpec]:
        return {name: LinearSpec.of(q) for name, q in self.linears.items()}

    @cached_property
    def tensors(self) -> Mapping[str, TensorSpec]:
        specs = {}
        for name, info in self.checkpoint.tensors.items():
            quantized = name.removesuffix(".weight") in self.linears
            specs[name] = TensorSpec(name, "F32" if quantized else info.dtype, info.shape)
        return specs

    def qlinear(self, linear: str) -> Any:
        """A QLinear or BlockLinear."""
        return self.linears[linear]

    def chunks(self, name: str) -> Iterator[np.ndarray]:
        assert name.removesuffix(".weight") not in self.linears
        return super().chunks(name)


def floats(folder: Path) -> Held:
    return Held(open_model(str(folder)), {})


def quantized(folder: Path, seed: int = 0, **grid: Any) -> Held:
    """Every linear inside the layers is replaced by random integers of that grid."""
    checkpoint, rng = open_model(str(folder)), np.random.default_rng(seed)
    linears = {
        name.removesuffix(".weight"): random_linear(rng, (info.shape[0], info.shape[1]), **grid)
        for name, info in checkpoint.tensors.items()
        if name.endswith("_proj.weight")
    }
    return Held(checkpoint, linears)


def in_blocks(folder: Path, types: Mapping[str, str], seed: int = 0) -> Held:
    """Every linear whose name has a key of `types` in it is replaced by random blocks of that type."""
    checkpoint = open_model(str(folder))
    linears = {}
    for number, (name, info) in enumerate(checkpoint.tensors.items()):
        type = next((type for part, type in types.items() if part in name), None)
        if type is not None and len(info.shape) == 2:
            q = linear_of(type, info.shape[0], info.shape[1] // BLOCK_TYPES[type].block, at_random(seed + number))
            linears[name.removesuffix(".weight")] = modest(q, np.random.default_rng(seed + number))
    return Held(checkpoint, linears)


def modest(q: BlockLinear, rng: np.random.Generator) -> BlockLinear:
    """The same integers with d and dmin by which weights are as large as those of a model."""

    def drawn(size: float) -> np.ndarray:
        signs = rng.choice([-1, 1], q.d.shape)
        return np.asarray(size * rng.uniform(1, 2, q.d.shape) * signs, np.float16)

    tried = replace(q, d=np.ones_like(q.d), dmin=None if q.dmin is None else np.ones_like(q.dmin))
    size = 0.5 * q.shape[1] ** -0.5 / float(tried.dequantize().std())
    return replace(q, d=drawn(size), dmin=None if q.dmin is None else drawn(size))


def export(artifact: Held, path: Path, **options: Any) -> GgufFile:
    return write(artifact, architecture_of(artifact.config), path, GgufOptions(**options))


def keys_of(path: Path) -> dict[str, Any]:
    """The metadata of a file, as the gguf package reads them."""
    return {k: f.contents() for k, f in gguf.GGUFReader(path).fields.items() if not k.startswith("GGUF.")}

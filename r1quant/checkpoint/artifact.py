"""Artifact: a model on disk whatever the files hold, its tensors under the names of the float checkpoint.

A quantized linear is at hand both as integers (`qlinear`) and dequantized (`read`); any other tensor as it is stored.
One artifact goes in and another comes out of every export, and `check` compares two. It does not know what files
look like.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from r1quant.checkpoint.tensorfile import TensorSpec
from r1quant.core.blocklinear import BlockLinear
from r1quant.core.blocktypes import BlockGrid
from r1quant.core.floats import fits_float16, significant_bits, widen
from r1quant.core.grid import UNIFORM, Grid, ValueGrid
from r1quant.core.json import Config, JsonObject
from r1quant.core.qlinear import QLinear, QuantizedLinear

if TYPE_CHECKING:
    import torch

    from r1quant.checkpoint.safetensors import Checkpoint

ROWS_LIMIT = 1 << 22  # numbers in one piece of `rows`


@dataclass(frozen=True)
class LinearSpec:
    """What a quantized linear needs of a format, known without its codes.

    shape       (out, in)
    bits        2 .. 8
    group_size  columns that share a scale; -1 is the whole row, None if groups are not equal runs of columns
    zeros       the smallest and the largest zero point
    scale_bits  significant bits of the scales: 8 fit bfloat16, 11 float16, more only float32
    scattered   the number of groups if they are not equal runs (act-order, or a ragged last group), else 0
    kind        of its grid; of another kind than the uniform one, zeros and scale_bits say nothing
    type        of GGUF, if its blocks are the grid; group_size is that of a block then
    """

    shape: tuple[int, int]
    bits: int
    group_size: int | None
    zeros: tuple[int, int]
    scale_bits: int = 8
    scattered: int = 0
    kind: str = UNIFORM
    type: str | None = None

    @property
    def symmetric(self) -> bool:
        midpoint = 1 << (self.bits - 1)
        return self.zeros == (midpoint, midpoint)

    @property
    def groups(self) -> int:
        """Groups in a row."""
        if self.group_size is None:
            return self.scattered
        return 1 if self.group_size == -1 else -(-self.shape[1] // self.group_size)

    @staticmethod
    def planned(shape: tuple[int, int], grid: ValueGrid) -> LinearSpec:
        """The form of a linear before it is quantized: what the grid allows."""
        if not isinstance(grid, Grid):
            type = grid.type if isinstance(grid, BlockGrid) else None
            return LinearSpec(shape, grid.bits, grid.group_size, (0, 0), kind=grid.kind, type=type)
        zeros = (grid.midpoint, grid.midpoint) if grid.symmetric else (grid.zero_min, grid.levels - 1)
        return LinearSpec(shape, grid.bits, grid.group_size, zeros, 8 if grid.scale_dtype == "portable" else 11)

    @staticmethod
    def of_arrays(
        shape: tuple[int, int],
        bits: int,
        group: npt.NDArray[np.int32] | None,
        zero: npt.NDArray[np.uint8],
        scale: npt.NDArray[Any],
    ) -> LinearSpec:
        """The form of a linear that is there. zero, scale: [out, groups]; group int32 [in], or None if trivial."""
        groups = scale.shape[1]
        even = groups > 0 and shape[1] % groups == 0
        run = shape[1] // groups if even else 0
        trivial = even and (group is None or bool((group == np.arange(shape[1]) // run).all()))
        size = (-1 if groups == 1 else run) if trivial else None
        wide = scale.astype(np.float32)
        need = significant_bits(wide) if fits_float16(wide) else 24
        zeros = int(zero.min(initial=255)), int(zero.max(initial=0))
        return LinearSpec(shape, bits, size, zeros, need, 0 if trivial else groups)

    @staticmethod
    def of(q: QLinear | BlockLinear) -> LinearSpec:
        if isinstance(q, BlockLinear):
            return LinearSpec.planned(q.shape, BlockGrid(q.type))
        return LinearSpec.of_arrays(q.shape, q.bits, q.group, q.zero, q.scale)

    def covers(self, other: LinearSpec) -> bool:
        """Whether a linear of the other form can be stored as one of this form: same shape, no less of anything."""
        alike = (self.shape, self.bits, self.groups) == (other.shape, other.bits, other.groups)
        alike = alike and (self.kind, self.type) == (other.kind, other.type)
        alike = alike and (self.group_size is None) == (other.group_size is None)
        holds = self.zeros[0] <= other.zeros[0] and other.zeros[1] <= self.zeros[1]
        return alike and holds and other.scale_bits <= self.scale_bits


class Artifact(Protocol):
    """What every reader offers and every writer takes."""

    @property
    def source(self) -> str:
        """What the user named."""

    @property
    def folder(self) -> Path:
        """Where side files are."""

    @property
    def format(self) -> str:
        """safetensors (floats), gptq, gptq-v2, awq, compressed-tensors, gguf or onnx."""

    @property
    def config(self) -> Config:
        """config.json of the float model: quantization_config is not in it."""

    @property
    def side_files(self) -> Mapping[str, bytes]:
        """Tokenizer and other small files that travel with the model, by name."""

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """Every tensor under its name in the float checkpoint. The `.weight` of a quantized linear is given as F32."""

    @property
    def linear_specs(self) -> Mapping[str, LinearSpec]:
        """The quantized linears, by name without `.weight`."""

    def qlinear(self, linear: str) -> QuantizedLinear:
        """The integers of a quantized linear, as stored. Raises CheckpointError if they are damaged."""

    def read(self, name: str) -> torch.Tensor:
        """A tensor: float32, exact, for the weight of a quantized linear; else in its stored dtype."""

    def chunks(self, name: str) -> Iterator[npt.NDArray[np.uint8]]:
        """The stored bytes of a tensor that is not quantized, piece by piece."""


@dataclass(frozen=True)
class CheckpointArtifact(Artifact):
    """An artifact whose tensors lie in a checkpoint. A subclass adds which of them are quantized linears, and how."""

    checkpoint: Checkpoint

    @property
    def source(self) -> str:
        return self.checkpoint.source

    @property
    def folder(self) -> Path:
        return self.checkpoint.folder

    @property
    def config(self) -> Config:
        return self.checkpoint.config

    @property
    def side_files(self) -> Mapping[str, bytes]:
        return self.checkpoint.side_files

    def holds(self, linear: str) -> bool:
        """Whether it is quantized."""
        return linear in self.linear_specs

    def read(self, name: str) -> torch.Tensor:
        import torch

        linear = name.removesuffix(".weight")
        if linear != name and self.holds(linear):
            return torch.from_numpy(self.qlinear(linear).dequantize())
        return self.checkpoint.read(name)

    def chunks(self, name: str) -> Iterator[npt.NDArray[np.uint8]]:
        return self.checkpoint.chunks(self.checkpoint.info(name))


@dataclass(frozen=True)
class PartlyQuantized(CheckpointArtifact):
    """A float checkpoint with matrices in their quantized form, which lie elsewhere or are still to be made.

    linears  gives one by name
    """

    specs: Mapping[str, LinearSpec]
    linears: Callable[[str], QuantizedLinear]

    @property
    def format(self) -> str:
        return "safetensors"

    @property
    def linear_specs(self) -> Mapping[str, LinearSpec]:
        return self.specs

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        return {
            name: TensorSpec(name, "F32" if name.removesuffix(".weight") in self.specs else info.dtype, info.shape)
            for name, info in self.checkpoint.tensors.items()
        }

    def qlinear(self, linear: str) -> QuantizedLinear:
        return self.linears(linear)


def generation_config(side_files: Mapping[str, bytes]) -> JsonObject:
    """generation_config.json of the carried files; empty if there is none or it is no JSON object."""
    try:
        found = json.loads(side_files.get("generation_config.json", b"{}"))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def stop_tokens(model: Artifact, eos: int | None) -> frozenset[int]:
    """The tokens that end an answer, as the model's files name them; eos is what its tokenizer does."""
    named = generation_config(model.side_files).get("eos_token_id", model.config.get("eos_token_id"))
    listed = named if isinstance(named, list) else [named]
    return frozenset(token for token in (*listed, eos) if isinstance(token, int))


def has_chat_template(side_files: Mapping[str, bytes]) -> bool:
    """Whether one of the carried files is a chat template or holds one."""
    return any(name.startswith("chat_template") or b"chat_template" in text for name, text in side_files.items())


def quantized(artifact: Artifact, name: str) -> str | None:
    """The quantized linear whose weight the tensor `name` is; None for any other tensor."""
    linear = name.removesuffix(".weight")
    return linear if linear != name and linear in artifact.linear_specs else None


def rows(artifact: Artifact, name: str, multiple: int = 1) -> Iterator[npt.NDArray[np.float32]]:
    """A tensor as float32, some whole rows at a time ([n, columns]; a vector is one row of pieces [n]).

    n is a multiple of `multiple` except in the last piece. A piece has about ROWS_LIMIT numbers. A quantized linear is
    dequantized whole first.
    """
    spec = artifact.tensors[name]
    columns = math.prod(spec.shape[1:])
    step = max(1, ROWS_LIMIT // max(1, columns) // multiple) * multiple
    linear = quantized(artifact, name)
    if linear is not None:
        whole = artifact.qlinear(linear).dequantize()
        yield from (whole[start : start + step] for start in range(0, len(whole), step))
        return
    held: list[npt.NDArray[np.float32]] = []
    have = 0
    for chunk in artifact.chunks(name):
        held.append(widen(chunk, spec.dtype))
        have += held[-1].size
        if have >= step * columns:
            joined = np.concatenate(held)
            whole_pieces = have // (step * columns) * step * columns
            for start in range(0, whole_pieces, step * columns):
                yield joined[start : start + step * columns].reshape(step, *spec.shape[1:])
            held, have = [joined[whole_pieces:]], have - whole_pieces
    if have:
        yield np.concatenate(held).reshape(-1, *spec.shape[1:])

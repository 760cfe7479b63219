"""A GGUF file as an Artifact: its numbers exactly, and the linears of the layers as the integers of their blocks.

Q4_0, Q5_0 and Q8_0 linears are uniform grids, with groups of 32 columns and one zero point; Q4_1 is one if every offset
is a whole multiple of its scale. Those of the other types of core/blocktypes.py are BlockLinears. Every other tensor,
the embedding and the head among them, is given in float: F32, F16 and BF16 as stored, other types as the exact float32
numbers they stand for; the blocks of these two are at hand for a copy. The row order of llama.cpp is undone. It does
not know how such a file came to be.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from r1quant.arch.tables import architecture_of
from r1quant.checkpoint.artifact import CheckpointArtifact, LinearSpec
from r1quant.checkpoint.gguf.header import StoredTensor
from r1quant.checkpoint.gguf.source import FLOAT_KINDS, GgufCheckpoint, neox_order, open_gguf, presented
from r1quant.checkpoint.safetensors import CHUNK, TensorInfo, fill
from r1quant.checkpoint.tensorfile import TensorSpec
from r1quant.core.blocklinear import BlockLinear
from r1quant.core.blocktypes import BLOCK_TYPES, BlockGrid
from r1quant.core.qlinear import QLinear
from r1quant.errors import CheckpointError
from r1quant.formats.gguf.blocks import BITS, BLOCK_BYTES, decode, zeros_of
from r1quant.formats.gguf.options import BLOCK, HALF_BITS, RANGES
from r1quant.formats.gguf.superblocks import unpack

# By the number of the ggml type.
GRIDS = {2: "q4_0", 3: "q4_1", 6: "q5_0", 8: "q8_0"}
TYPES = {of.number: name for name, of in BLOCK_TYPES.items()}


@dataclass(frozen=True)
class GgufArtifact(CheckpointArtifact):
    """A GGUF model, whole or in parts. `checkpoint` presents every tensor in a dtype that holds it exactly."""

    checkpoint: GgufCheckpoint

    @property
    def format(self) -> str:
        return "gguf"

    @cached_property
    def tensors(self) -> Mapping[str, TensorSpec]:
        return {name: TensorSpec(name, i.dtype, i.shape) for name, i in self.checkpoint.tensors.items()}

    @cached_property
    def linear_specs(self) -> Mapping[str, LinearSpec]:
        """The linears of the layers that are quantized in a known type.

        Nothing is read but offsets of Q4_1, so scales are taken to need all bits of float16.
        """
        arch = architecture_of(self.config)
        weights = tuple(f".{linear}.weight" for linear in arch.layer.linears)
        return {
            name.removesuffix(".weight"): _linear_spec(stored)
            for name, stored in self.checkpoint.stored.items()
            if name.endswith(weights) and stored.kind in TYPES
        }

    def table_type(self, name: str) -> str | None:
        """The type of a table that is stored in blocks, such as Q6_K; None for every other tensor."""
        arch = architecture_of(self.config)
        stored = self.checkpoint.stored.get(name)
        if stored is None or name not in (arch.tensors.embedding, arch.tensors.head):
            return None
        return TYPES.get(stored.kind)

    def table_rows(self, name: str) -> Iterator[npt.NDArray[np.uint8]]:
        """The blocks of such a table as they are stored, uint8 [rows, row bytes], some rows at a time."""
        stored = self.checkpoint.stored[name]
        return _raw(stored, max(1, CHUNK // stored.row_bytes))

    def qlinear(self, linear: str) -> QLinear | BlockLinear:
        if linear not in self.linear_specs:
            raise CheckpointError(f"{linear} is not quantized in {self.source}", "name a linear that is")
        name = f"{linear}.weight"
        stored, heads = self.checkpoint.stored[name], self.checkpoint.heads.get(name)
        raw = next(_raw(stored, stored.shape[0]))
        if heads:
            raw = neox_order(raw, stored.shape[0] // heads)
        type = self.linear_specs[linear].type
        try:
            return decode(raw, GRIDS[stored.kind]) if type is None else unpack(raw, type)
        except ValueError as error:
            raise CheckpointError(f"{linear}: {error}", "the file is damaged; download it again") from None


def open_gguf_artifact(path: Path, source: str | None = None, partial: bool = False) -> GgufArtifact:
    """A GGUF file, or any part of a split one. Raises CheckpointError as open_gguf does."""
    checkpoint = open_gguf(path, source, partial)
    exact: dict[str, TensorInfo] = {
        name: presented(name, stored, FLOAT_KINDS.get(stored.kind, "F32")) for name, stored in checkpoint.stored.items()
    }
    return GgufArtifact(replace(checkpoint, tensors=exact))


def _linear_spec(stored: StoredTensor) -> LinearSpec:
    """On the uniform grid if it can be."""
    shape, kind = (stored.shape[0], stored.shape[1]), GRIDS.get(stored.kind)
    zeros = None
    if kind == "q4_1":
        zeros = _zero_range(stored) if stored.whole else None
    elif kind is not None:
        zeros = -RANGES[kind][0], -RANGES[kind][0]
    if kind is None or zeros is None:
        return LinearSpec.planned(shape, BlockGrid(TYPES[stored.kind]))
    return LinearSpec(shape, BITS[kind], BLOCK, zeros, HALF_BITS)


def _raw(stored: StoredTensor, step: int) -> Iterator[npt.NDArray[np.uint8]]:
    """The rows of blocks as they are stored, uint8 [rows, row bytes], `step` at a time."""
    with stored.file.open("rb", buffering=0) as file:
        file.seek(stored.offset)
        for start in range(0, stored.shape[0], step):
            raw = np.empty((min(step, stored.shape[0] - start), stored.row_bytes), np.uint8)
            fill(file, raw.reshape(-1), stored.file)
            yield raw


def _zero_range(stored: StoredTensor) -> tuple[int, int] | None:
    """The smallest and largest zero point of a Q4_1 tensor; None if one of them is not an integer."""
    low, high = 15, 0
    for raw in _raw(stored, max(1, CHUNK // stored.row_bytes)):
        heads = np.ascontiguousarray(raw.reshape(-1, BLOCK_BYTES["q4_1"])[:, :4]).view(np.float16)
        zeros = zeros_of(heads[:, 0], heads[:, 1])
        if zeros is None:
            return None
        low, high = min(low, int(zeros.min())), max(high, int(zeros.max()))
    return low, high

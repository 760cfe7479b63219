"""A GGUF file as an Artifact: its numbers exactly, and the linears whose blocks are an integer grid as integers.

Q4_0, Q5_0 and Q8_0 linears are such grids, with groups of 32 columns and one zero point; Q4_1 is one if every offset is
a whole multiple of its scale. Every other tensor is given in float: F32, F16 and BF16 as stored, other types as the
exact float32 numbers they stand for. The row order of llama.cpp is undone. It does not know how such a file came to be.
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
from r1quant.core.qlinear import QLinear
from r1quant.errors import CheckpointError
from r1quant.formats.gguf.blocks import BITS, BLOCK_BYTES, decode, zeros_of
from r1quant.formats.gguf.options import BLOCK, HALF_BITS, RANGES

GRIDS = {2: "q4_0", 3: "q4_1", 6: "q5_0", 8: "q8_0"}  # by the number of the ggml type


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
        """The linears of the layers that are grids of integers.

        Nothing is read for types with a fixed zero point, so their scales are taken to need all bits of float16.
        """
        arch = architecture_of(self.config)
        weights = tuple(f".{linear}.weight" for linear in arch.layer.linears)
        specs = {}
        for name, stored in self.checkpoint.stored.items():
            if name.endswith(weights) and stored.kind in GRIDS:
                spec = self._linear_spec(stored)
                if spec is not None:
                    specs[name.removesuffix(".weight")] = spec
        return specs

    def _linear_spec(self, stored: StoredTensor) -> LinearSpec | None:
        kind = GRIDS[stored.kind]
        shape = (stored.shape[0], stored.shape[1])
        if kind == "q4_1":
            zeros = _zero_range(stored) if stored.whole else None
            return None if zeros is None else LinearSpec(shape, BITS[kind], BLOCK, zeros, HALF_BITS)
        zero = -RANGES[kind][0]
        return LinearSpec(shape, BITS[kind], BLOCK, (zero, zero), HALF_BITS)

    def qlinear(self, linear: str) -> QLinear:
        if linear not in self.linear_specs:
            raise CheckpointError(f"{linear} is not quantized in {self.source}", "name a linear that is")
        name = f"{linear}.weight"
        stored, heads = self.checkpoint.stored[name], self.checkpoint.heads.get(name)
        raw = next(_raw(stored, stored.shape[0]))
        if heads:
            raw = neox_order(raw, stored.shape[0] // heads)
        try:
            return decode(raw, GRIDS[stored.kind])
        except ValueError as error:
            raise CheckpointError(f"{linear}: {error}", "the file is damaged; download it again") from None


def open_gguf_artifact(path: Path, source: str | None = None, partial: bool = False) -> GgufArtifact:
    """A GGUF file, or any part of a split one. Raises CheckpointError as open_gguf does."""
    checkpoint = open_gguf(path, source, partial)
    exact: dict[str, TensorInfo] = {
        name: presented(name, stored, FLOAT_KINDS.get(stored.kind, "F32")) for name, stored in checkpoint.stored.items()
    }
    return GgufArtifact(replace(checkpoint, tensors=exact))


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

"""Layout: which tensors a safetensors checkpoint consists of, in which order and in which files. No tensor is read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from r1quant.arch.tables import Architecture
from r1quant.checkpoint.artifact import LinearSpec
from r1quant.checkpoint.tensorfile import TensorSpec, header
from r1quant.formats.codec import Encoder

SHARD_LIMIT = 5_000_000_000
INDEX = "model.safetensors.index.json"
METADATA = {"format": "pt"}
RECORD = "r1quant.json"  # what an output folder says of itself


@dataclass(frozen=True)
class Layout:
    """The tensors of every weight file."""

    shards: tuple[tuple[TensorSpec, ...], ...]

    def name(self, index: int) -> str:
        count = len(self.shards)
        return "model.safetensors" if count == 1 else f"model-{index + 1:05d}-of-{count:05d}.safetensors"

    @property
    def nbytes(self) -> int:
        """Bytes of the weight files, headers included."""
        return sum(len(header(shard, METADATA)) + sum(spec.nbytes for spec in shard) for shard in self.shards)

    @property
    def index(self) -> bytes | None:
        """The index file; None if one file holds everything."""
        if len(self.shards) == 1:
            return None
        total = sum(spec.nbytes for shard in self.shards for spec in shard)
        weight_map = {spec.name: self.name(i) for i, shard in enumerate(self.shards) for spec in shard}
        return (json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2) + "\n").encode()


@dataclass(frozen=True)
class OneFile:
    """A format that puts everything into one file: its bytes."""

    nbytes: int


def make(
    tensors: Iterable[TensorSpec],
    arch: Architecture,
    linear_specs: Mapping[str, LinearSpec],
    codec: Encoder | None,
    dtype: str = "",
) -> Layout:
    """The layout of a model in a format.

    tensors  every tensor under its float name
    forms    the linears that are stored as integers, by name without `.weight`; the codec says as which tensors
    dtype    the dtype of all that is not stored as integers; each tensor's own if it is empty
    """
    shards: list[list[TensorSpec]] = [[]]
    filled = 0
    for tensor in sorted(tensors, key=lambda spec: _place(spec.name, arch)):
        linear = tensor.name.removesuffix(".weight")
        if codec is not None and linear != tensor.name and linear in linear_specs:
            specs = codec.tensor_specs(linear, linear_specs[linear])
        else:
            specs = [TensorSpec(tensor.name, dtype or tensor.dtype, tensor.shape)]
        for spec in specs:
            if filled + spec.nbytes > SHARD_LIMIT and shards[-1]:
                shards.append([])
                filled = 0
            shards[-1].append(spec)
            filled += spec.nbytes
    return Layout(tuple(tuple(shard) for shard in shards))


def _place(name: str, arch: Architecture) -> tuple[int, int, str]:
    """The order of the model: embedding, layers, the rest."""
    if name == arch.tensors.embedding:
        return (0, 0, name)
    prefix, _, _ = arch.tensors.layer.partition("{layer}")
    index = name.removeprefix(prefix).split(".")[0]
    return (1, int(index), name) if name.startswith(prefix) and index.isdecimal() else (2, 0, name)

"""The header of a GGUF file as bytes: version 3, little endian, everything described before any tensor follows.

The type of a metadata value is that of the Python object: str, bool, float (as float32), int (as uint32), a numpy
scalar as what it is, a list of str, or a numpy array of numbers. It does not know what keys mean.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from r1quant.errors import CheckpointError

ALIGNMENT = 32
VERSION = 3
NAME_LIMIT = 64  # bytes of a tensor name, the closing zero among them
SCALARS = {
    "uint8": 0, "int8": 1, "uint16": 2, "int16": 3, "uint32": 4, "int32": 5, "float32": 6,
    "uint64": 10, "int64": 11, "float64": 12,
}  # fmt: skip
BOOL, STRING, ARRAY = 7, 8, 9

MetadataValue: TypeAlias = str | bool | int | float | np.generic | list[str] | npt.NDArray[Any]
Metadata: TypeAlias = dict[str, MetadataValue]


@dataclass(frozen=True)
class Entry:
    """A tensor as the header describes it. shape is row-major, [out, in]; kind is the number of its ggml type."""

    name: str
    shape: tuple[int, ...]
    kind: int
    nbytes: int

    @property
    def padded(self) -> int:
        """Bytes up to the next tensor."""
        return aligned(self.nbytes)


def aligned(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT


def header(metadata: Mapping[str, MetadataValue], tensors: Iterable[Entry]) -> bytes:
    """All that comes before the first tensor, padding included. The tensors follow in this order, each padded."""
    tensors = list(tensors)
    parts = [b"GGUF", struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [_string(key), _value(key, value)]
    offset = 0
    for tensor in tensors:
        name = _string(tensor.name)
        if len(name) - 8 >= NAME_LIMIT:
            raise CheckpointError(f"the tensor name {tensor.name} is too long for GGUF", "give it a shorter name")
        rank = len(tensor.shape)
        parts += [name, struct.pack(f"<I{rank}QIQ", rank, *reversed(tensor.shape), tensor.kind, offset)]
        offset += tensor.padded
    raw = b"".join(parts)
    return raw + bytes(aligned(len(raw)) - len(raw))


def _string(text: str) -> bytes:
    raw = text.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def _value(key: str, value: MetadataValue) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _string(value)
    if isinstance(value, bool):
        return struct.pack("<I?", BOOL, value)
    if isinstance(value, list):
        return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(_string, value))
    if isinstance(value, np.ndarray):
        kind = SCALARS[value.dtype.name]
        return struct.pack("<IIQ", ARRAY, kind, value.size) + np.ascontiguousarray(value).tobytes()
    if isinstance(value, np.generic):
        return struct.pack("<I", SCALARS[value.dtype.name]) + value.tobytes()
    if isinstance(value, float):
        return struct.pack("<If", SCALARS["float32"], value)
    if not isinstance(value, int) or not 0 <= value < 1 << 32:
        raise CheckpointError(f"{key} is {value!r}, which GGUF cannot hold", "restore the model's own config.json")
    return struct.pack("<II", SCALARS["uint32"], value)

"""Writes safetensors files tensor by tensor: the header is known before any content is.

Reading is safetensors.py's. It does not know what the tensors mean.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from r1quant.checkpoint.safetensors import ITEM_SIZE
from r1quant.storage.atomic import replacing

NUMPY_NAMES = {
    "float16": "F16", "float32": "F32", "int32": "I32", "int64": "I64", "int8": "I8", "uint8": "U8", "uint16": "BF16",
}  # fmt: skip

Content = Callable[[], Iterable[npt.NDArray[Any]]]  # the tensor's bytes, as one or more contiguous arrays


@dataclass(frozen=True)
class TensorSpec:
    """A tensor to be written; `dtype` is safetensors' name."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_SIZE[self.dtype]


def spec_of(name: str, array: npt.NDArray[Any]) -> TensorSpec:
    """The spec under which an array is written; uint16 stands for the bits of bfloat16."""
    return TensorSpec(name, NUMPY_NAMES[array.dtype.name], array.shape)


def header(specs: Iterable[TensorSpec], metadata: Mapping[str, str]) -> bytes:
    """Length, JSON and padding: all that comes before the first tensor."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for spec in specs:
        end = offset + spec.nbytes
        entries[spec.name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write(path: Path, specs: Iterable[TensorSpec], metadata: Mapping[str, str], contents: Iterable[Content]) -> None:
    """The whole file, atomically. Raises ValueError if a content does not have its spec's size."""
    specs = list(specs)
    with replacing(path) as file:
        file.write(header(specs, metadata))
        for spec, content in zip(specs, contents, strict=True):
            written = 0
            for piece in content():
                file.write(memoryview(np.ascontiguousarray(piece)).cast("B"))
                written += piece.nbytes
            if written != spec.nbytes:
                raise ValueError(f"{spec.name}: {written} bytes instead of {spec.nbytes}")


def write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str]) -> None:
    """A file of arrays that are all at hand."""

    def content(array: npt.NDArray[Any]) -> Content:
        return lambda: (array,)

    specs = [spec_of(name, array) for name, array in arrays.items()]
    write(path, specs, metadata, [content(array) for array in arrays.values()])

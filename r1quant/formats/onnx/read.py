"""Reads an ONNX folder that r1quant wrote: the integers of quantized linears bit for bit, other tensors as stored.

It does not know the nodes of the graph, and not models of other programs, which lack config.json.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from r1quant.arch.tables import layer_count
from r1quant.checkpoint.artifact import LinearSpec
from r1quant.checkpoint.safetensors import CARRIED, CHUNK, fill, read_json, read_side_file
from r1quant.checkpoint.tensorfile import TensorSpec
from r1quant.core.json import Config
from r1quant.core.qlinear import QLinear
from r1quant.errors import CheckpointError
from r1quant.formats.codec import as_stored_scale
from r1quant.formats.onnx.graph import Outside
from r1quant.formats.onnx.layout import decode, decode_grid
from r1quant.formats.onnx.places import AGAIN, FLOATS, LinearPlace, Places, read_places
from r1quant.formats.onnx.weights import Q8_BLOCK
from r1quant.formats.onnx.writer import DATA, MODEL

if TYPE_CHECKING:
    import torch

INTERNAL = ("cos_cache", "sin_cache")


@dataclass(frozen=True)
class OnnxArtifact:
    """A folder as an Artifact."""

    source: str
    folder: Path
    config: Config
    side_files: Mapping[str, bytes]
    places: Places

    @property
    def format(self) -> str:
        return "onnx"

    @cached_property
    def tensors(self) -> Mapping[str, TensorSpec]:
        specs: dict[str, TensorSpec] = {}
        parts = {f"{place.base}.{suffix}" for place in self.places.linears.values() for suffix in place.layout.shapes}
        for name, place in self.places.linears.items():
            specs[f"{name}.weight"] = TensorSpec(f"{name}.weight", "F32", place.layout.shape)
        for name, tensor in self.places.outside.items():
            tensor_of = name.removesuffix(".codes")
            if name in self._rounded:
                specs[tensor_of] = TensorSpec(tensor_of, "F32", self._rounded[name])
            elif tensor.kind in FLOATS and name not in parts and name not in INTERNAL and not self._is_scale(name):
                specs[name] = TensorSpec(name, FLOATS[tensor.kind][0], tensor.shape)
        return specs

    @cached_property
    def _rounded(self) -> Mapping[str, tuple[int, ...]]:
        """The codes of 8-bit embeddings and heads, with the shape of the tensor they stand for."""
        hidden = self.config.get("hidden_size")
        shapes = {}
        for name, tensor in self.places.outside.items():
            scales = self.places.outside.get(f"{name.removesuffix('.codes')}.scales")
            if name.endswith(".codes") and scales is not None and len(tensor.shape) == len(scales.shape) == 2:
                width = hidden if isinstance(hidden, int) else tensor.shape[1]
                blocks = scales.shape[1]
                if tensor.shape != (scales.shape[0], blocks * Q8_BLOCK) or -(-width // Q8_BLOCK) != blocks:
                    raise CheckpointError(f"{name} does not fit its scales", AGAIN)
                shapes[name] = (tensor.shape[0], width)
        return shapes

    def _is_scale(self, name: str) -> bool:
        return name.endswith(".scales") and f"{name.removesuffix('.scales')}.codes" in self.places.outside

    @cached_property
    def linear_specs(self) -> Mapping[str, LinearSpec]:
        """Read from scales and zero points. Linears with offsets, which no QLinear has, are given in float."""
        return {
            linear: self._linear_spec(linear, place)
            for linear, place in self.places.linears.items()
            if not place.layout.offsets
        }

    def _linear_spec(self, linear: str, place: LinearPlace) -> LinearSpec:
        arrays = {suffix: self._array(place, suffix) for suffix in place.layout.shapes if suffix != "qweight"}
        try:
            scale, zero = decode_grid(arrays, place.layout)
        except ValueError as error:
            raise CheckpointError(f"{linear}: {error}", AGAIN) from None
        return LinearSpec.of_arrays(place.layout.shape, place.layout.bits, None, zero, scale)

    def qlinear(self, linear: str) -> QLinear:
        if linear not in self.linear_specs:
            raise CheckpointError(f"{linear} is not quantized in {self.source}", "name a linear that is")
        return self._even(linear)

    def _even(self, linear: str) -> QLinear:
        """The codes of a linear, but for its offsets."""
        place = self.places.linears[linear]
        arrays = {suffix: self._array(place, suffix) for suffix in place.layout.shapes}
        try:
            q = decode(arrays, place.layout)
            q = replace(q, scale=as_stored_scale(q.scale))
            q.validate()
        except ValueError as error:
            raise CheckpointError(f"{linear}: {error}", AGAIN) from None
        return q

    def read(self, name: str) -> torch.Tensor:
        import torch

        linear = name.removesuffix(".weight")
        if linear != name and linear in self.places.linears:
            return torch.from_numpy(self._dequantized_linear(linear))
        spec = self._spec(name)
        raw = np.concatenate([np.empty(0, np.uint8), *self.chunks(name)])
        dtype = torch.float32 if spec.dtype == "F32" else torch.float16
        return torch.from_numpy(raw).view(dtype).reshape(spec.shape)

    def chunks(self, name: str) -> Iterator[npt.NDArray[np.uint8]]:
        self._spec(name)
        if f"{name}.codes" in self._rounded:
            yield from self._dequantized(name)
            return
        linear = name.removesuffix(".weight")
        if linear != name and linear in self.places.linears:
            yield self._dequantized_linear(linear).reshape(-1).view(np.uint8)
            return
        tensor = self.places.outside[name]
        for start in range(0, tensor.nbytes, CHUNK):
            yield self._bytes(tensor, start, min(CHUNK, tensor.nbytes - start))

    def _dequantized_linear(self, linear: str) -> npt.NDArray[np.float32]:
        place, weight = self.places.linears[linear], self._even(linear).dequantize()
        if place.layout.offsets:
            weight += np.repeat(self._array(place, "offsets").astype(np.float32), place.layout.block, axis=1)
        return weight

    def _dequantized(self, name: str) -> Iterator[npt.NDArray[np.uint8]]:
        codes, scales = self.places.outside[f"{name}.codes"], self.places.outside[f"{name}.scales"]
        count, columns = self._rounded[f"{name}.codes"]
        step = max(1, CHUNK // (4 * codes.shape[1]))
        for row in range(0, count, step):
            rows = min(step, count - row)
            scale = self._rows(scales, row, rows).astype(np.float32)
            values = self._rows(codes, row, rows).astype(np.float32).reshape(rows, -1, Q8_BLOCK) - 128
            values *= scale.reshape(rows, -1, 1)
            yield np.ascontiguousarray(values.reshape(rows, -1)[:, :columns]).reshape(-1).view(np.uint8)

    def _spec(self, name: str) -> TensorSpec:
        if name not in self.tensors:
            raise CheckpointError(f"{self.source}: tensor {name} is missing", "export the model again")
        return self.tensors[name]

    def _array(self, place: LinearPlace, suffix: str) -> npt.NDArray[Any]:
        """The part of an initializer that belongs to one linear, in the layout's shape (bytes for packed codes)."""
        tensor, layout = self.places.outside[f"{place.base}.{suffix}"], place.layout
        if layout.style == "qdq":
            raw = self._bytes(tensor, 0, tensor.nbytes)
            return raw.view(FLOATS[tensor.kind][1]) if tensor.kind in FLOATS else raw
        planes = 1 if suffix == "offsets" else layout.planes
        total = tensor.shape[0] // planes
        parts = [self._rows(tensor, plane * total + place.row, layout.shape[0]) for plane in range(planes)]
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def _rows(self, tensor: Outside, start: int, count: int) -> npt.NDArray[Any]:
        row_bytes = tensor.nbytes // tensor.shape[0]
        raw = self._bytes(tensor, start * row_bytes, count * row_bytes)
        kind = FLOATS[tensor.kind][1] if tensor.kind in FLOATS else np.dtype(np.uint8)
        return raw.view(kind).reshape(count, *tensor.shape[1:])

    def _bytes(self, tensor: Outside, start: int, count: int) -> npt.NDArray[np.uint8]:
        buffer, path = np.empty(count, np.uint8), self.folder / DATA
        with path.open("rb", buffering=0) as file:
            file.seek(tensor.offset + start)
            fill(file, buffer, path)
        return buffer


def open_onnx(path: Path, source: str | None = None) -> OnnxArtifact:
    """A folder that r1quant wrote, or its model.onnx. Raises CheckpointError if it is damaged or another's."""
    folder = path if path.is_dir() else path.parent
    if path.is_file() and path.name != MODEL:
        raise CheckpointError(f"{path} is not {MODEL}", "name the folder that r1quant wrote")
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise CheckpointError(f"{folder / 'config.json'} is not a JSON object", "export the model again")
    names = sorted(f.name for f in folder.iterdir() if any(fnmatch(f.name, p) for p in CARRIED) and f.is_file())
    artifact = OnnxArtifact(
        source=source or str(path),
        folder=folder,
        config=config,
        side_files={name: read_side_file(folder / name) for name in names},
        places=read_places(folder),
    )
    layer_count(config, len(artifact.tensors))
    return artifact

"""The places of all tensors in an ONNX folder that r1quant wrote, every entry checked.

The places of linears come from the model's metadata, shapes and offsets from its initializers. External data is
looked for in the folder only. It reads no weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto

from r1quant.core.json import JsonObject
from r1quant.errors import CheckpointError
from r1quant.formats.onnx.graph import WIDTHS, Outside
from r1quant.formats.onnx.layout import BlockLayout
from r1quant.formats.onnx.options import BLOCK_SIZES
from r1quant.formats.onnx.writer import DATA, MODEL, PROPERTY, SCHEMA

GRAPH_LIMIT = 1 << 28  # bytes of model.onnx: all large tensors are outside
FLOATS: Mapping[int, tuple[str, np.dtype[Any]]] = {
    int(TensorProto.FLOAT): ("F32", np.dtype("<f4")),
    int(TensorProto.FLOAT16): ("F16", np.dtype("<f2")),
}
AGAIN = "the file is damaged; export the model again"


@dataclass(frozen=True)
class LinearPlace:
    """The place of a linear: rows row .. of the initializers `base`.qweight, .scales, .qzeros."""

    base: str
    row: int
    layout: BlockLayout


@dataclass(frozen=True)
class Places:
    """What model.onnx says: initializers of the data file, quantized linears, and its options and what was rounded."""

    outside: Mapping[str, Outside]
    linears: Mapping[str, LinearPlace]
    options: JsonObject
    inexact: Mapping[str, str]


def read_places(folder: Path) -> Places:
    """Raises CheckpointError if the model is damaged or another program's."""
    model = _model(folder / MODEL)
    about = _about(model, folder)
    outside = _outside(model, folder)
    linears = {name: _place(name, entry, outside) for name, entry in about["linears"].items()}
    return Places(outside, linears, about["options"], about["inexact"])


def _model(path: Path) -> ModelProto:
    try:
        if path.stat().st_size > GRAPH_LIMIT:
            raise CheckpointError(f"{path} is too large for a graph with external weights", "export the model again")
        model = ModelProto()
        model.ParseFromString(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}", "name a folder with model.onnx") from None
    except CheckpointError:
        raise
    except Exception:  # protobuf's own, which has no type stubs
        raise CheckpointError(f"{path} is not an ONNX model", AGAIN) from None
    return model


def _about(model: ModelProto, folder: Path) -> JsonObject:
    text = {entry.key: entry.value for entry in model.metadata_props}.get(PROPERTY)
    if text is None:
        raise CheckpointError(
            f"{folder} holds an ONNX model of another program", "only ONNX folders that r1quant wrote can be read"
        )
    try:
        about = json.loads(text)
    except (ValueError, RecursionError):
        about = None
    parts = ("options", "linears", "inexact")
    if (
        not isinstance(about, dict)
        or about.get("schema") != SCHEMA
        or not all(isinstance(about.get(part), dict) for part in parts)
    ):
        raise CheckpointError(f"{folder / MODEL}: its metadata is not of this version of r1quant", AGAIN)
    return about


def _outside(model: ModelProto, folder: Path) -> dict[str, Outside]:
    """Every initializer of the data file, its place checked against the size of the file."""
    try:
        total = (folder / DATA).stat().st_size
    except OSError as error:
        raise CheckpointError(f"{folder / DATA} cannot be read: {error.strerror}", "export the model again") from None
    tensors = {}
    for proto in model.graph.initializer:
        if proto.data_location != TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in proto.external_data}
        if entries.get("location") != DATA:
            raise CheckpointError(
                f"{MODEL} names {entries.get('location')!r:.100} for its weights, which is not {DATA} of its folder",
                "do not use this model unless you trust its source",
            )
        shape = tuple(proto.dims)
        offset, length = (_whole(entries.get(key)) for key in ("offset", "length"))
        tensor = Outside(proto.name, proto.data_type, shape, offset)
        fits = proto.data_type in WIDTHS and len(shape) <= 4 and all(0 < n < 1 << 40 for n in shape)
        if not fits or length != tensor.nbytes or offset < 0 or offset + length > total:
            raise CheckpointError(f"{MODEL}: the place of {proto.name[:100]!r} in {DATA} is not valid", AGAIN)
        tensors[proto.name] = tensor
    return tensors


def _whole(text: str | None) -> int:
    return int(text) if text is not None and text.isascii() and text.isdecimal() and len(text) < 19 else -1


def _place(name: str, entry: Any, outside: Mapping[str, Outside]) -> LinearPlace:
    """The place of a linear, checked against the initializers that hold it."""
    invalid = CheckpointError(f"{MODEL}: what it says of {name[:100]!r} is not valid", AGAIN)
    keys = {"in", "row"} | {field.name for field in fields(BlockLayout)}
    if not isinstance(entry, dict) or set(entry) | {"offsets"} != keys or not isinstance(entry["shape"], list):
        raise invalid
    values = [entry[key] for key in ("row", "bits", "group_size", "width", "planes", "block")] + entry["shape"]
    if not all(isinstance(v, int) and not isinstance(v, bool) for v in values) or len(entry["shape"]) != 2:
        raise invalid
    arguments = {key: value for key, value in entry.items() if key not in ("in", "row")}
    layout = BlockLayout(**arguments | {"shape": tuple(entry["shape"])})
    if not _possible(layout) or not isinstance(entry["in"], str) or entry["row"] < 0:
        raise invalid
    place = LinearPlace(entry["in"], entry["row"], layout)
    for suffix, shape in layout.shapes.items():
        tensor = outside.get(f"{place.base}.{suffix}")
        if (
            tensor is None
            or (suffix in ("scales", "offsets")) != (tensor.kind in FLOATS)
            or len(tensor.shape) != len(shape)
        ):
            raise invalid
        if layout.style == "qdq":
            fits = tensor.shape == shape and (tensor.kind in FLOATS or WIDTHS[tensor.kind] == layout.width)
        else:
            rows, planes = tensor.shape[0], 1 if suffix == "offsets" else layout.planes
            fits = tensor.shape[1:] == shape[1:] and rows % planes == 0
            fits = fits and place.row + layout.shape[0] <= rows // planes
            fits = fits and (tensor.kind in FLOATS or WIDTHS[tensor.kind] == 8)
        if not fits:
            raise invalid
    return place


def _possible(layout: BlockLayout) -> bool:
    """Whether the numbers of a layout go together."""
    out, columns = layout.shape
    group = columns if layout.group_size == -1 else layout.group_size
    fits = layout.style in ("matmulnbits", "qdq") and isinstance(layout.zeros, bool) and layout.planes in (1, 2)
    fits = fits and out > 0 and columns > 0 and group > 0 and 2 <= layout.bits <= 8
    fits = fits and layout.width in (2, 4, 8) and layout.bits <= layout.width * layout.planes
    fits = fits and layout.block in BLOCK_SIZES and (layout.group_size == -1 or group % layout.block == 0)
    fits = fits and columns % group == 0 and (layout.planes == 1 or (layout.width == 4 and layout.zeros))
    fits = fits and isinstance(layout.offsets, bool)
    return fits and (layout.style == "matmulnbits" or (layout.planes == 1 and not layout.offsets))

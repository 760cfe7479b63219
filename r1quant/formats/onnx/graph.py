"""A graph under construction: nodes, small constants inside it, and tensors whose bytes go to a file beside it.

Every outside tensor is announced with its shape before any content exists, so the offsets are known and the content
is written piece by piece, wherever in the file it belongs. It does not know models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from r1quant.storage import atomic

ALIGNMENT = 4096
CONTRIB = "com.microsoft"
OPSET, IR_VERSION = 21, 10
WIDTHS = {
    TensorProto.FLOAT: 32, TensorProto.FLOAT16: 16, TensorProto.UINT8: 8, TensorProto.INT8: 8,
    TensorProto.UINT4: 4, TensorProto.INT4: 4,
}  # fmt: skip


class Piece(NamedTuple):
    """Bytes of the outside tensor `name`, from its byte `start` on."""

    name: str
    start: int
    data: npt.NDArray[Any]


Attribute: TypeAlias = int | float | Sequence[int]  # of a node
Content = Callable[[], Iterator[Piece]]


@dataclass(frozen=True)
class Outside:
    """A tensor of the data file. `offset` is in bytes."""

    name: str
    kind: int
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        return nbytes(self.kind, self.shape)


def nbytes(kind: int, shape: Sequence[int]) -> int:
    """Bytes of a tensor of TensorProto's type `kind`; two 4-bit integers share one."""
    return -(-math.prod(shape) * WIDTHS[kind] // 8)


@dataclass
class Graph:
    """Names are given by the caller or counted; every outside tensor is announced once."""

    location: str
    nodes: list[NodeProto] = field(default_factory=list)
    inputs: list[ValueInfoProto] = field(default_factory=list)
    outputs: list[ValueInfoProto] = field(default_factory=list)
    constants: dict[str, TensorProto] = field(default_factory=dict)
    outside: dict[str, Outside] = field(default_factory=dict)
    contents: list[Content] = field(default_factory=list)
    size: int = 0  # of the data file

    def node(
        self,
        kind: str,
        inputs: Sequence[str],
        name: str,
        attributes: Mapping[str, Attribute] | None = None,
        outputs: Sequence[str] | None = None,
        domain: str = "",
    ) -> str:
        """Adds a node; its first output is called `name` unless outputs are given. Returns the first output."""
        results = list(outputs or (name,))
        self.nodes.append(
            helper.make_node(kind, list(inputs), results, name=f"/{name}", domain=domain, **(attributes or {}))
        )
        return results[0]

    def constant(self, value: npt.NDArray[Any]) -> str:
        """A small constant in the graph itself, shared by all who need the same."""
        name = f"constant.{value.dtype.name}.{'x'.join(map(str, value.shape))}.{value.tobytes().hex()}"
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(value, name)
        return name

    def integers(self, *values: int) -> str:
        """int64 [n]"""
        return self.constant(np.array(values, np.int64))

    def add_outside(self, name: str, kind: int, shape: tuple[int, ...]) -> str:
        """Announces a tensor at the end of the data file. Its content must be among `contents`."""
        if name in self.outside:
            raise ValueError(f"{name} is announced twice")
        tensor = Outside(name, kind, shape, self.size)
        self.outside[name] = tensor
        self.size += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        return name

    def add_view(self, name: str, of: str, shape: tuple[int, ...]) -> str:
        """The same bytes of the data file under another name and shape."""
        same = self.outside[of]
        view = Outside(name, same.kind, shape, same.offset)
        if view.nbytes != same.nbytes:
            raise ValueError(f"{name} is not of the size of {of}")
        self.outside[name] = view
        return name

    def write_data(self, path: Path, step: Callable[[int], None]) -> None:
        """Streams every content to its place. step is called with the number of bytes just written."""
        with atomic.replacing(path) as file:
            for content in self.contents:
                for piece in content():
                    file.seek(self.outside[piece.name].offset + piece.start)
                    file.write(memoryview(np.ascontiguousarray(piece.data)).cast("B"))
                    step(piece.data.nbytes)
            file.truncate(self.size)

    def model(self, metadata: Mapping[str, str], producer: tuple[str, str]) -> ModelProto:
        """The whole model. metadata becomes metadata_props; producer is (name, version)."""
        initializers = [*self.constants.values(), *(self._proto(tensor) for tensor in self.outside.values())]
        graph = helper.make_graph(self.nodes, "main_graph", self.inputs, self.outputs, initializers)
        used = sorted({node.domain for node in self.nodes} - {""})
        opsets = [helper.make_opsetid("", OPSET), *(helper.make_opsetid(domain, 1) for domain in used)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
        model.producer_name, model.producer_version = producer
        helper.set_model_props(model, dict(metadata))
        return model

    def _proto(self, tensor: Outside) -> TensorProto:
        proto = TensorProto(name=tensor.name, data_type=tensor.kind, dims=tensor.shape)
        proto.data_location = TensorProto.EXTERNAL
        for key, value in (("location", self.location), ("offset", tensor.offset), ("length", tensor.nbytes)):
            proto.external_data.add(key=key, value=str(value))
        return proto

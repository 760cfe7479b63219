"""The weights of a model as initializers of a graph: announced by shape, streamed one tensor at a time.

An initializer of floats is called like the tensor of the checkpoint. A quantized linear is LINEAR.qweight,
LINEAR.scales and, if there are zero points or minima, LINEAR.qzeros and LINEAR.offsets; linears whose rows are stored
as one are called after all of them, joined by a plus. What a float tensor loses in a narrower dtype is noted by name.
It does not know which nodes use them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from r1quant.checkpoint.artifact import Artifact, LinearSpec, rows
from r1quant.core.blocklinear import BlockLinear
from r1quant.core.grid import UNIFORM
from r1quant.core.json import JsonDict
from r1quant.core.qlinear import QLinear
from r1quant.errors import CheckpointError, NumericError, RecipeError
from r1quant.formats.onnx.graph import Content, Graph, Piece
from r1quant.formats.onnx.layout import BlockLayout, encode
from r1quant.formats.onnx.options import OnnxOptions, problem

Q8_BLOCK = 32


@dataclass
class Weights:
    """`stored` describes every quantized linear for readers; `inexact` says what was rounded, and how."""

    graph: Graph
    artifact: Artifact
    options: OnnxOptions
    stored: dict[str, JsonDict] = field(default_factory=dict)
    inexact: dict[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> int:
        """TensorProto's type of activations, scales and float tensors."""
        return int(TensorProto.FLOAT16 if self.options.dtype == "float16" else TensorProto.FLOAT)

    @property
    def numpy_dtype(self) -> npt.DTypeLike:
        return np.float16 if self.options.dtype == "float16" else np.float32

    def linear_spec(self, linear: str) -> LinearSpec | None:
        return self.artifact.linear_specs.get(linear)

    def has(self, name: str) -> bool:
        return name in self.artifact.tensors

    def floats(self, name: str) -> str:
        """The initializer of a tensor that stays in floating point (a quantized one is dequantized for it)."""
        if name not in self.graph.outside:
            spec = self.artifact.tensors[name]
            self.graph.add_outside(name, self.kind, spec.shape)
            self.graph.contents.append(self._floats(name))
        return name

    def layouts(self, linears: tuple[str, ...]) -> list[BlockLayout]:
        """The layouts of quantized linears. Raises RecipeError if one cannot be stored."""
        layouts = []
        for linear in linears:
            spec = self.artifact.linear_specs[linear]
            reason = problem(spec, self.options)
            if reason:
                raise RecipeError(f"{linear}: {reason}", "choose another format, or quantize with other options")
            layouts.append(BlockLayout.of(spec, self.options))
        return layouts

    def quantized(self, linears: tuple[str, ...]) -> tuple[str, BlockLayout]:
        """The common name of the initializers of linears stored as one, and the layout of all their rows together.

        Several linears must have layouts that fuse. Only MatMulNBits takes several.
        """
        return self._announced(linears, self.layouts(linears))

    def looks_up(self, linear: str) -> bool:
        """Whether rows of a matrix can be looked up as the integers that it is quantized to."""
        spec = self.linear_spec(linear)
        return spec is not None and spec.kind == UNIFORM and problem(spec, self._one_plane) is None

    def table(self, linear: str) -> tuple[str, BlockLayout]:
        """The same for a matrix whose rows are looked up, and which may be the head too: its codes are in one plane."""
        return self._announced((linear,), [BlockLayout.of(self.artifact.linear_specs[linear], self._one_plane)])

    @property
    def _one_plane(self) -> OnnxOptions:
        return replace(self.options, accuracy_level=0)

    def _announced(self, linears: tuple[str, ...], layouts: list[BlockLayout]) -> tuple[str, BlockLayout]:
        total = sum(layout.shape[0] for layout in layouts)
        first = layouts[0]
        whole = replace(first, shape=(total, first.shape[1]))
        base = joined(linears)
        if f"{base}.qweight" not in self.graph.outside:
            kinds = self._kinds(whole)
            for suffix, shape in whole.shapes.items():
                self.graph.add_outside(f"{base}.{suffix}", kinds[suffix], shape)
            row = 0
            for linear, layout in zip(linears, layouts, strict=True):
                self.stored[linear] = {"in": base, "row": row, **_described(layout)}
                self.graph.contents.append(self._quantized(linear, layout, base, (row, total)))
                row += layout.shape[0]
        return base, whole

    def rounded(self, name: str) -> str:
        """A float matrix as 8-bit blocks of 32: the common name of .codes uint8 [rows, columns] and .scales."""
        if f"{name}.codes" not in self.graph.outside:
            out, columns = self.artifact.tensors[name].shape
            blocks = -(-columns // Q8_BLOCK)
            self.graph.add_outside(f"{name}.codes", int(TensorProto.UINT8), (out, blocks * Q8_BLOCK))
            self.graph.add_outside(f"{name}.scales", self.kind, (out, blocks))
            self.graph.contents.append(self._rounded(name))
        return name

    def _kinds(self, layout: BlockLayout) -> dict[str, int]:
        codes = TensorProto.UINT8
        if layout.style == "qdq":
            signed = {4: TensorProto.INT4, 8: TensorProto.INT8}
            unsigned = {4: TensorProto.UINT4, 8: TensorProto.UINT8}
            codes = (unsigned if layout.zeros else signed)[layout.width]
        return {"qweight": int(codes), "scales": self.kind, "qzeros": int(codes), "offsets": self.kind}

    def _floats(self, name: str) -> Content:
        def content() -> Iterator[Piece]:
            start, changed = 0, 0
            for piece in rows(self.artifact, name):
                cast = self._cast(name, piece)
                if cast.dtype != np.float32:
                    changed += int(np.count_nonzero(cast.astype(np.float32) != piece))
                yield Piece(name, start, cast)
                start += cast.nbytes
            if changed:
                total = math.prod(self.artifact.tensors[name].shape)
                self.inexact[name] = f"{changed} of {total} values are rounded to float16"

        return content

    def _cast(self, name: str, values: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        if not bool(np.isfinite(values).all()):
            raise NumericError(f"tensor {name} holds NaN or Inf", "the checkpoint is damaged; download it again")
        with np.errstate(over="ignore"):
            cast = values.astype(self.numpy_dtype)
        if not bool(np.isfinite(cast).all()):
            raise NumericError(f"tensor {name} has values beyond the range of float16", "export with dtype float32")
        return cast

    def _quantized(self, linear: str, layout: BlockLayout, base: str, place: tuple[int, int]) -> Content:
        """place: the first row of this linear, and the rows of all that are stored with it."""
        row, total = place

        def content() -> Iterator[Piece]:
            q = self.artifact.qlinear(linear)
            if not isinstance(q, QLinear | BlockLinear) or q.shape != layout.shape or q.bits != layout.bits:
                raise CheckpointError(f"{linear} is not what its header says", "the file is damaged; download it again")
            arrays = encode(q, layout)
            for floats in {"scales", "offsets"} & arrays.keys():
                with np.errstate(over="ignore"):
                    narrow = arrays[floats].astype(self.numpy_dtype)
                if not np.array_equal(narrow.astype(np.float32), arrays[floats].astype(np.float32)):
                    raise RecipeError(f"{linear}: float16 cannot hold its {floats}", "export with dtype float32")
                arrays[floats] = narrow
            for suffix, array in arrays.items():
                planes = 1 if suffix == "offsets" else layout.planes
                row_bytes = array.nbytes // (planes * layout.shape[0])
                for plane, part in enumerate(np.split(array, planes)):
                    yield Piece(f"{base}.{suffix}", (plane * total + row) * row_bytes, part)

        return content

    def _rounded(self, name: str) -> Content:
        def content() -> Iterator[Piece]:
            codes_at, scales_at = 0, 0
            for piece in rows(self.artifact, name):
                codes, scales = round_to_q8(self._cast(name, piece).astype(np.float32), self.numpy_dtype)
                yield Piece(f"{name}.codes", codes_at, codes)
                yield Piece(f"{name}.scales", scales_at, scales)
                codes_at, scales_at = codes_at + codes.nbytes, scales_at + scales.nbytes
            self.inexact[name] = f"rounded to 8 bits in blocks of {Q8_BLOCK}"

        return content


def _described(layout: BlockLayout) -> JsonDict:
    """Without `offsets` if there are none, of which the first folders do not know."""
    return {key: value for key, value in asdict(layout).items() if key != "offsets" or value}


def joined(linears: tuple[str, ...]) -> str:
    """One name for linears stored as one: a.b.q_proj, a.b.k_proj -> a.b.q_proj+k_proj."""
    return "+".join([linears[0], *(name.rpartition(".")[2] for name in linears[1:])])


def round_to_q8(
    values: npt.NDArray[np.float32], scale_dtype: npt.DTypeLike
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[Any]]:
    """[rows, columns] to codes uint8 [rows, blocks * 32] around 128, padded with 128, and scales [rows, blocks]."""
    count, columns = values.shape
    blocks = -(-columns // Q8_BLOCK)
    padded = np.zeros((count, blocks * Q8_BLOCK), np.float32)
    padded[:, :columns] = values
    parts = padded.reshape(count, blocks, Q8_BLOCK)
    scales = (np.abs(parts).max(axis=2) / np.float32(127)).astype(scale_dtype)
    scales[scales == 0] = 1
    codes = np.rint(parts / scales.astype(np.float32)[:, :, None])
    return (np.clip(codes, -128, 127) + 128).astype(np.uint8).reshape(count, -1), scales

"""The bytes of a quantized linear in an ONNX file, and back: MatMulNBits, and blocks for DequantizeLinear.

MatMulNBits keeps qweight uint8 [out, blocks, block_size * width / 8], codes along the input, low bits first; scales
[out, blocks]; and, if they are not all the midpoint, zero_points uint8 [out, ceil(blocks * width / 8)].
DequantizeLinear takes weights [in, out], scales and zero points [blocks, out], nibbles packed along the flat tensor,
low one first; without zero points the codes are signed.

Codes of a width that no operator has go into the next one. On a symmetric grid they are moved so that the midpoint of
the wider code is the zero point. A code in two planes is two rows of MatMulNBits whose results are added: with
c = 16 h + l and z = 16 y + x, (c - z) s = (h - y) 16 s + (l - x) s. Blocks of GGUF with a minimum have offsets [out,
blocks] besides, the floats that are added in each block. It does not know the graph.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from r1quant.checkpoint.artifact import LinearSpec
from r1quant.core import bits as packing
from r1quant.core.blocklinear import BlockLinear
from r1quant.core.qlinear import QLinear
from r1quant.formats.evenly import has_offsets, linear_of, spec_of
from r1quant.formats.onnx.options import OnnxOptions, Style, block_size, stored_bits

Bytes = npt.NDArray[np.uint8]
Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class BlockLayout:
    """How one linear is stored. `width` is of a stored code, in all of `planes`; `zeros`: zero points are written;
    `offsets`: floats are added in each block."""

    style: Style
    shape: tuple[int, int]
    bits: int
    group_size: int
    width: int
    planes: int
    block: int
    zeros: bool
    offsets: bool = False

    @staticmethod
    def of(spec: LinearSpec, options: OnnxOptions) -> BlockLayout:
        """The layout of a linear that `problem` passes."""
        even, offsets = spec_of(spec), has_offsets(spec)
        assert even is not None
        spec = even
        block, group = block_size(spec, options), spec.group_size
        assert block is not None and group is not None
        width, planes = stored_bits(spec, options)
        zeros = not spec.symmetric or planes == 2 or (options.zero_points and options.style == "matmulnbits")
        return BlockLayout(options.style, spec.shape, spec.bits, group, width, planes, block, zeros, offsets)

    @property
    def rows(self) -> int:
        """The rows of MatMulNBits: those of the first plane, then those of the second."""
        return self.planes * self.shape[0]

    @property
    def blocks(self) -> int:
        return -(-self.shape[1] // self.block)

    @property
    def blocks_per_group(self) -> int:
        return self.blocks if self.group_size == -1 else self.group_size // self.block

    @property
    def moved(self) -> int:
        """What is added to every code if no zero points are written."""
        return 0 if self.zeros else (1 << (self.width - 1)) - (1 << (self.bits - 1))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the stored arrays. Those of DequantizeLinear count codes, not bytes."""
        out, columns = self.shape
        if self.style == "qdq":
            shapes: dict[str, tuple[int, ...]] = {"qweight": (columns, out), "scales": (self.blocks, out)}
            zeros = (self.blocks, out)
        else:
            rows, row_bytes = self.rows, self.block * self.width // 8
            shapes = {"qweight": (rows, self.blocks, row_bytes), "scales": (rows, self.blocks)}
            zeros = (rows, -(-self.blocks * self.width // 8))
        added = {"offsets": (out, self.blocks)} if self.offsets else {}
        return shapes | ({"qzeros": zeros} if self.zeros else {}) | added

    def fuses_with(self, other: BlockLayout) -> bool:
        """Whether rows of both can be one MatMulNBits."""
        same = replace(other, shape=self.shape, bits=self.bits, group_size=self.group_size)
        return self == same and self.shape[1] == other.shape[1]


def encode(q: QLinear | BlockLinear, layout: BlockLayout) -> Arrays:
    """qweight and qzeros as the bytes of the file, scales float16 or float32, a block with those of its group; offsets
    float32."""
    if isinstance(q, BlockLinear):
        even, offsets = linear_of(q)
        return encode(even, replace(layout, offsets=False)) | ({"offsets": offsets} if layout.offsets else {})
    codes = q.codes + np.uint8(layout.moved)
    scales = np.repeat(q.scale, layout.blocks_per_group, axis=1)
    zeros = np.repeat(q.zero, layout.blocks_per_group, axis=1) if layout.zeros else None
    if layout.style == "qdq":
        return _encode_qdq(codes, scales, zeros, layout.width)
    padded = layout.blocks * layout.block
    if padded != layout.shape[1]:
        codes = np.pad(codes, ((0, 0), (0, padded - layout.shape[1])))
    if layout.planes == 2 and zeros is not None:
        codes, zeros = _halves(codes), _halves(zeros)
        scales = np.concatenate([scales.astype(np.float32) * 16, scales])
    arrays: Arrays = {"qweight": packing.pack(codes, layout.width).view(np.uint8).reshape(layout.shapes["qweight"])}
    arrays["scales"] = scales
    if zeros is not None:
        arrays["qzeros"] = _pack_rows(zeros, layout.width)
    return arrays


def decode(arrays: Arrays, layout: BlockLayout) -> QLinear:
    """The inverse of encode, but for offsets. Raises ValueError if the arrays cannot be a linear of this layout."""
    columns = layout.shape[1]
    scale, zero = decode_grid(arrays, layout)
    codes = _decode_codes(arrays["qweight"], layout)
    if layout.moved:
        if codes.size and int(codes.min()) < layout.moved:
            raise ValueError(f"a code does not fit {layout.bits} bits")
        codes = codes - np.uint8(layout.moved)
    run = columns if layout.group_size == -1 else layout.group_size
    group = (np.arange(columns) // run).astype(np.int32)
    return QLinear(np.ascontiguousarray(codes), scale, zero, group, layout.bits)


def decode_grid(arrays: Arrays, layout: BlockLayout) -> tuple[npt.NDArray[Any], Bytes]:
    """scale and zero [out, groups], without a look at the codes. Raises ValueError as decode does."""
    out, step = layout.shape[0], layout.blocks_per_group
    if layout.style == "qdq":
        scales = arrays["scales"].reshape(layout.blocks, out).T
        count = layout.blocks * out
        zeros = unpack_flat(arrays["qzeros"], layout.width, count).reshape(-1, out).T if layout.zeros else None
    else:
        scales = arrays["scales"].reshape(layout.rows, -1)
        zeros = _unpack_rows(arrays["qzeros"], layout.width, layout.blocks) if layout.zeros else None
    if layout.planes == 2 and zeros is not None:
        if not np.array_equal(scales[:out].astype(np.float32), scales[out:].astype(np.float32) * 16):
            raise ValueError("the scales of both halves of the codes do not fit together")
        scales, zeros = scales[out:], zeros[:out] << np.uint8(4) | zeros[out:]
    if zeros is None:
        zeros = np.full(scales.shape, 1 << (layout.bits - 1), np.uint8)
    parameters = []
    for name, blocks in (("scale", scales), ("zero point", zeros)):
        groups = blocks[:, ::step]
        if not np.array_equal(blocks, np.repeat(groups, step, axis=1)[:, : blocks.shape[1]]):
            raise ValueError(f"the blocks of one group differ in their {name}")
        parameters.append(np.ascontiguousarray(groups))
    return parameters[0], parameters[1]


def _decode_codes(stored: Bytes, layout: BlockLayout) -> Bytes:
    """uint8 [out, in], still moved."""
    out, columns = layout.shape
    if layout.style == "qdq":
        codes = unpack_flat(stored, layout.width, columns * out).reshape(columns, out).T
        return codes if layout.zeros else codes ^ np.uint8(1 << (layout.width - 1))
    words = np.ascontiguousarray(stored).reshape(layout.rows, -1).view("<i4")
    codes = packing.unpack(words, layout.width)[:, :columns]
    return codes if layout.planes == 1 else codes[:out] << np.uint8(4) | codes[out:]


def _halves(values: Bytes) -> Bytes:
    """The high four bits of all rows, then the low four."""
    return np.concatenate([values >> np.uint8(4), values & np.uint8(15)])


def _encode_qdq(codes: Bytes, scales: npt.NDArray[Any], zeros: Bytes | None, width: int) -> Arrays:
    if zeros is None:
        codes = codes ^ np.uint8(1 << (width - 1))  # from an offset to two's complement
    arrays: Arrays = {"qweight": pack_flat(codes.T, width), "scales": np.ascontiguousarray(scales.T)}
    return arrays if zeros is None else arrays | {"qzeros": pack_flat(zeros.T, width)}


def pack_flat(values: Bytes, width: int) -> Bytes:
    """uint8 codes of any shape as ONNX keeps tensors of 4-bit integers: in order, two a byte, the low half first."""
    flat = np.ascontiguousarray(values).reshape(-1)
    if width == 8:
        return flat
    if flat.size % 2:
        flat = np.append(flat, np.uint8(0))
    return flat[0::2] | (flat[1::2] << np.uint8(4))


def unpack_flat(stored: Bytes, width: int, count: int) -> Bytes:
    """The inverse of pack_flat, flat."""
    flat = stored.reshape(-1)
    if width == 8:
        return flat[:count]
    return np.stack([flat & np.uint8(15), flat >> np.uint8(4)], axis=1).reshape(-1)[:count]


def _pack_rows(values: Bytes, width: int) -> Bytes:
    """uint8 [rows, n] to uint8 [rows, ceil(n * width / 8)]: a row in bytes of its own."""
    rows, count = values.shape
    per_word = packing.values_per_block(width)
    padded = np.zeros((rows, -(-count // per_word) * per_word), np.uint8)
    padded[:, :count] = values
    return np.ascontiguousarray(packing.pack(padded, width).view(np.uint8)[:, : -(-count * width // 8)])


def _unpack_rows(stored: Bytes, width: int, count: int) -> Bytes:
    rows, size = stored.shape
    padded = np.zeros((rows, -(-size // 4) * 4), np.uint8)
    padded[:, :size] = stored
    return packing.unpack(padded.view("<i4"), width)[:, :count]

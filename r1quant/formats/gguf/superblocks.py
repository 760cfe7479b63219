"""The block types of GGUF as bytes: blocks out of a BlockLinear, and back. Nothing is rounded here.

Both ways every field goes over as it is, so that `unpack(pack(q), q.type)` has the fields of q and `pack(unpack(raw,
type))` the bytes of raw. It does not know files, names or how a type was chosen.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from r1quant.core.blocklinear import BlockLinear
from r1quant.core.blocktypes import BLOCK_TYPES
from r1quant.formats.gguf.layouts import LAYOUTS

Bytes = npt.NDArray[np.uint8]

PIECE = 1 << 18  # weights worked on at a time, so that they stay in the processor's cache


def pack(linear: BlockLinear) -> Bytes:
    """uint8 [out, row bytes]: the rows of blocks.

    Raises ValueError if the linear is not valid or a combination of its levels is not one that the type allows.
    """
    linear.validate()
    of, (out, columns) = linear.of, linear.shape
    raw = np.empty((out, of.row_bytes(columns)), np.uint8)
    for rows in _pieces(out, columns):
        source, piece = _by_block(linear.take(rows)), raw[rows].reshape(-1, of.nbytes)
        for part in LAYOUTS[linear.type]:
            part.put(source, piece)
    return raw


def unpack(raw: Bytes, type: str) -> BlockLinear:
    """The linear that rows of blocks are. raw: uint8 [out, row bytes]; type: a key of BLOCK_TYPES.

    Raises ValueError if rows are no whole blocks, or a float16 number of a block is not finite.
    """
    of = BLOCK_TYPES[type]
    out, columns = raw.shape[0], raw.shape[1] // of.nbytes * of.block
    if raw.shape[1] % of.nbytes:
        raise ValueError(f"rows of {raw.shape[1]} bytes are not whole blocks of {type}, of {of.nbytes} bytes each")
    blocks, groups = (out, columns // of.block), (out, columns // of.group)
    linear = BlockLinear(
        type,
        np.empty((out, columns), np.uint8),
        np.empty(blocks, np.float16),
        np.empty(groups, np.int8) if of.scales else None,
        None if of.minima is None else np.empty(blocks, np.float16),
        np.empty(groups, np.uint8) if of.minima else None,
    )
    for rows in _pieces(out, columns):
        piece, target = np.ascontiguousarray(raw[rows]).reshape(-1, of.nbytes), _by_block(linear.take(rows))
        for part in LAYOUTS[type]:
            part.get(piece, target)
    if not all(bool(np.isfinite(halves).all()) for halves in (linear.d, linear.dmin) if halves is not None):
        raise ValueError("a scale is not finite")
    return linear


def _pieces(out: int, columns: int) -> Iterator[slice]:
    step = max(1, PIECE // max(1, columns))
    return (slice(start, min(start + step, out)) for start in range(0, out, step))


def _by_block(q: BlockLinear) -> BlockLinear:
    """A linear with one block a row; its arrays are views if those of q are contiguous."""
    of = q.of
    return BlockLinear(
        q.type,
        q.codes.reshape(-1, of.block),
        q.d.reshape(-1, 1),
        None if q.scales is None else q.scales.reshape(-1, of.block // of.group),
        None if q.dmin is None else q.dmin.reshape(-1, 1),
        None if q.minima is None else q.minima.reshape(-1, of.block // of.group),
    )

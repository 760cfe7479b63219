"""Blocks of GGUF for formats of the uniform grid: the same weights as codes, scales, zero points and, apart, offsets.

That works for types whose levels are neighbouring integers. Their scales are float32 then, the product of what a block
stores, and the minima of a group are added to it as one float: w = (code - zero) * scale + offset. Nothing is rounded.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from r1quant.checkpoint.artifact import LinearSpec
from r1quant.core.blocklinear import BlockLinear
from r1quant.core.blocktypes import BLOCK_TYPES, BLOCKS
from r1quant.core.qlinear import QLinear

HALF_BITS = 11  # significant bits of float16


def has_offsets(spec: LinearSpec) -> bool:
    """Whether every group of a linear has a float that is added."""
    return spec.type is not None and BLOCK_TYPES[spec.type].minima is not None


def spec_of(spec: LinearSpec) -> LinearSpec | None:
    """The linear on the uniform grid, but for its offsets; None if its levels are no neighbouring integers."""
    if spec.kind != BLOCKS or spec.type is None:
        return spec
    of = BLOCK_TYPES[spec.type]
    if not of.uniform:
        return None
    zero, most = -int(of.levels[0]), max(map(abs, of.scales or (0, 0)))
    # 128 has one significant bit, so that 127 is the widest of Q6_K.
    return LinearSpec(spec.shape, of.bits, of.group, (zero, zero), HALF_BITS + (most - 1 if most else 0).bit_length())


def uneven(spec: LinearSpec) -> str:
    """Why a linear that has none is not held on the uniform grid."""
    return f"only gguf holds {spec.type} blocks: their levels are not neighbouring integers"


def linear_of(q: BlockLinear) -> tuple[QLinear, npt.NDArray[np.float32]]:
    """The codes, and the offset of each group, float32 [out, groups]. The levels are neighbouring integers.

    A scale of 0, which no QLinear has, becomes 1, and the codes of its group the zero point.
    """
    of, (out, columns) = q.of, q.shape
    zero, scale = np.uint8(-of.levels[0]), q.scale
    nothing = scale == 0
    codes = np.where(np.repeat(nothing, of.group, axis=1), zero, q.codes) if bool(nothing.any()) else q.codes
    scale = np.where(nothing, np.float32(1), scale)
    group = (np.arange(columns) // of.group).astype(np.int32)
    return QLinear(codes, scale, np.full((out, columns // of.group), zero), group, of.bits), q.offset

"""The bytes of one tensor of a GGUF file, piece by piece: blocks of a quantized linear, or floats in some type.

It does not know headers or files.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from r1quant.checkpoint.artifact import Artifact, rows
from r1quant.core.blocklinear import BlockLinear
from r1quant.core.floats import round_to, widen
from r1quant.core.qlinear import QLinear
from r1quant.errors import NumericError, RecipeError
from r1quant.formats.gguf import blocks, superblocks
from r1quant.formats.gguf.options import BLOCK_TYPES
from r1quant.formats.gguf.read import GgufArtifact
from r1quant.formats.gguf.targets import Target

Bytes = npt.NDArray[np.uint8]


def pieces(artifact: Artifact, target: Target, rounded: dict[str, str]) -> Iterator[npt.NDArray[Any]]:
    """The bytes in the order of the file. A tensor that comes out rounded is put into `rounded` with the reason.

    Raises RecipeError if a quantized linear is not exact in the type, NumericError if a number is too large.
    """
    if target.linear is not None:
        yield _linear(artifact, target, target.linear)
        return
    if isinstance(artifact, GgufArtifact) and (artifact.table_type(target.name) or "").lower() == target.type:
        yield from artifact.table_rows(target.name)
        return
    if target.stored.lower() == target.type and target.heads is None and not target.offset:
        yield from artifact.chunks(target.name)
        return
    unit = target.entry.shape[0] // target.heads if target.heads else 1
    for values in rows(artifact, target.name, unit):
        ordered = interleaved(values, len(values) // unit) if target.heads else values
        if target.offset:  # in float32, as every program that runs the model adds them
            ordered = ordered + np.float32(target.offset)
        raw, exact = _rounded(ordered, target.type, target.name)
        if not exact:
            rounded[target.name] = f"rounded from {target.stored} to {target.type.upper()}"
        yield raw


def _linear(artifact: Artifact, target: Target, linear: str) -> Bytes:
    q = artifact.qlinear(linear)
    raw = None
    if isinstance(q, BlockLinear) and target.type == q.type.lower():
        raw = _packed(q, linear)
    elif isinstance(q, QLinear) and target.type in BLOCK_TYPES:
        raw = blocks.encode(q, target.type)
    if raw is not None:
        return interleaved(raw, target.heads) if target.heads else raw
    values = q.dequantize()
    raw, exact = _rounded(interleaved(values, target.heads) if target.heads else values, target.type, target.name)
    if not exact:
        raise RecipeError(f"{linear}: its weights are not exact in {target.type.upper()}", "take f32, or auto")
    return raw


def _packed(q: BlockLinear, linear: str) -> Bytes:
    try:
        return superblocks.pack(q)
    except ValueError as error:
        raise RecipeError(f"{linear}: {error}", "quantize the model again, or export it as floats") from None


def interleaved(array: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """The rows of q or k in llama.cpp's order, in which the two that are rotated together are neighbours."""
    halves = array.reshape(heads, 2, len(array) // heads // 2, *array.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(array.shape)


def _rounded(values: npt.NDArray[np.float32], kind: str, name: str) -> tuple[Bytes, bool]:
    """The values in a type, and whether they are still the same. Raises NumericError if one becomes infinite."""
    if kind in BLOCK_TYPES:
        from gguf import GGMLQuantizationType
        from gguf.quants import quantize

        return np.asarray(quantize(values, GGMLQuantizationType[kind.upper()]), np.uint8), False
    raw = round_to(values, kind.upper())
    back = widen(raw, kind.upper())
    flat = values.reshape(-1)
    if bool((back == flat).all()):
        return raw, True
    if not bool(np.isfinite(back[np.isfinite(flat)]).all()):
        raise NumericError(f"{name} holds numbers that are too large for {kind.upper()}", "choose bf16 or f32")
    return raw, bool(((back == flat) | np.isnan(flat)).all())

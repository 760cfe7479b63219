"""Floating-point tensors as bytes: F32, F16 and BF16 to float32 and back. Only here are floats rounded to a dtype."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

FLOAT_DTYPES = ("BF16", "F16", "F32")


def widen(raw: npt.NDArray[np.uint8], dtype: str) -> npt.NDArray[np.float32]:
    """Bytes of F32, F16 or BF16 as float32, flat and exact. Raises ValueError for another dtype."""
    if dtype == "F32":
        return raw.view("<f4").astype(np.float32, copy=False)
    if dtype == "F16":
        return raw.view("<f2").astype(np.float32)
    if dtype == "BF16":
        return (raw.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    raise ValueError(f"{dtype} is not a floating-point dtype")


def round_to(values: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[np.uint8]:
    """The bytes of the values in F32, F16 or BF16, flat, rounded to nearest, ties to even."""
    if dtype == "F32":
        return np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    if dtype == "F16":
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(values).reshape(-1).astype(np.float16).view(np.uint8)
    if dtype != "BF16":
        raise ValueError(f"{dtype} is not a floating-point dtype")
    bits = np.ascontiguousarray(values).reshape(-1).view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = ((bits + (odd + np.uint32(0x7FFF))) >> np.uint32(16)).astype(np.uint16)
    rounded[(bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)] = 0x7FC0
    return rounded.view(np.uint8)


def fits_float16(values: npt.NDArray[Any]) -> bool:
    """Whether float16 holds every one of the values (float16 or float32) exactly. NaN fits nothing."""
    with np.errstate(over="ignore"):
        return bool((values.astype(np.float16).astype(values.dtype) == values).all())


def significant_bits(values: npt.NDArray[np.float32]) -> int:
    """The most significant bits that any of the values has (1 .. 24); 0 for none. 8 fit bfloat16, 11 float16."""
    fraction = (np.ascontiguousarray(values).view(np.uint32) & np.uint32(0x7FFFFF)) | np.uint32(0x800000)
    lowest = fraction & (~fraction + np.uint32(1))
    return 24 - int(np.log2(lowest.min())) if lowest.size else 0

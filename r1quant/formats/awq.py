"""The AWQ checkpoint format, version GEMM: 4 bits, a zero point in every group.

Per linear: qweight int32 [in, out / 8] and qzeros int32 [groups, out / 8], both packed along the output in the order
that its kernels unpack in; scales float16 [groups, out]. A symmetric grid is stored with all zero points 8, since
there is no variant without them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from r1quant.checkpoint.artifact import LinearSpec
from r1quant.checkpoint.tensorfile import TensorSpec
from r1quant.core import bits as packing
from r1quant.core.json import JsonObject, QuantConfig
from r1quant.core.qlinear import QLinear, QuantizedLinear
from r1quant.errors import RecipeError
from r1quant.formats.codec import (
    HEAD,
    Arrays,
    as_stored_scale,
    group_sizes,
    packed_shape,
    refuse,
    require_tables,
    runs,
    tensor,
    uniform,
    whole,
)
from r1quant.formats.names import with_fused

BITS, PER_WORD = 4, 8
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # nibble i of a word, from the lowest, holds column ORDER[i] of its eight


class Awq:
    """AWQ as a Codec."""

    name = "awq"
    suffixes = ("qweight", "qzeros", "scales")
    marker_suffix = "qweight"

    def problem(self, spec: LinearSpec) -> str | None:
        if spec.bits != BITS:
            return f"AWQ files hold 4 bits, not {spec.bits}"
        if spec.group_size is None:
            return "AWQ files hold equal groups of neighbouring columns, and these are not (act-order)"
        if spec.shape[0] % PER_WORD:
            return f"{spec.shape[0]} output rows are not a multiple of 8, which AWQ packing needs"
        if spec.scale_bits > 11:
            return "AWQ files hold float16 scales, and a scale does not fit float16"
        return None

    def tensor_specs(self, linear: str, spec: LinearSpec) -> list[TensorSpec]:
        out, columns = spec.shape
        return [
            TensorSpec(f"{linear}.qweight", "I32", (columns, out // PER_WORD)),
            TensorSpec(f"{linear}.qzeros", "I32", (spec.groups, out // PER_WORD)),
            TensorSpec(f"{linear}.scales", "F16", (spec.groups, out)),
        ]

    def encode(self, q: QuantizedLinear, spec: LinearSpec | None = None) -> dict[str, npt.NDArray[Any]]:
        q = uniform(self, q)
        refuse(self, q, spec)
        return {
            "qweight": _pack(q.codes),
            "qzeros": _pack(q.zero),
            "scales": np.ascontiguousarray(q.scale.T.astype(np.float16, copy=False)),
        }

    def linear_spec(self, codes: TensorSpec, arrays: Arrays, quant_config: QuantConfig) -> LinearSpec:
        columns, words = packed_shape(codes)
        group, scale, zero = self._all_but_codes(columns, words, arrays, quant_config)
        return LinearSpec.of_arrays((words * PER_WORD, columns), BITS, group, zero, scale)

    def decode(self, arrays: Arrays, quant_config: QuantConfig, linear: str = "") -> QLinear:
        words = tensor(arrays, "qweight", ("int32",), (None, None))
        group, scale, zero = self._all_but_codes(len(words), words.shape[1], arrays, quant_config)
        return QLinear(_unpack(words), as_stored_scale(scale), zero, group, BITS)

    def _all_but_codes(
        self, columns: int, words: int, arrays: Arrays, quant_config: QuantConfig
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[Any], npt.NDArray[np.uint8]]:
        """Group map, scale and zero, both [out, groups]. If no group size is configured, groups are equal."""
        bits = whole(quant_config, "bits", "w_bit")
        if bits not in (None, BITS):
            raise ValueError(f"the configuration states {bits} bits, and AWQ has {BITS}")
        scale = tensor(arrays, "scales", ("float16", "float32"), (None, words * PER_WORD)).T
        zero = tensor(arrays, "qzeros", ("int32",), (scale.shape[1], words))
        return runs(columns, scale.shape[1], whole(quant_config, "group_size", "q_group_size")), scale, _unpack(zero)

    def quant_config(
        self, linear_specs: Mapping[str, LinearSpec], plain: tuple[str, ...], meta: JsonObject
    ) -> QuantConfig:
        """`modules_to_not_convert` is there only if a linear of the layers stays in float: null is more than readers
        bear, and the head is float in every such checkpoint, whether it is listed or not.

        Raises RecipeError if linears differ in group size, which this format cannot say, and for embedding and head.
        """
        require_tables(self, linear_specs)
        sizes = set(group_sizes(linear_specs).values())
        if len(sizes) != 1:
            several = ", ".join(sorted(map(str, sizes)))
            raise RecipeError(
                f"AWQ has one group size for all linears, not {several}", "export it --to compressed-tensors"
            )
        return {
            "quant_method": "awq",
            "version": "gemm",
            "bits": BITS,
            "group_size": sizes.pop(),
            "zero_point": True,
            **({"modules_to_not_convert": with_fused(plain)} if set(plain) - {HEAD} else {}),
            "meta": dict(meta),
        }

    def side_files(self, quant_config: QuantConfig) -> Mapping[str, JsonObject]:
        """AutoAWQ's own file, with its own names for the same things."""
        theirs = {"w_bit": quant_config["bits"], "q_group_size": quant_config["group_size"]}
        return {"quant_config.json": {"zero_point": True, **theirs, "version": "GEMM"}}


def _pack(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
    """uint8 [out, n] to int32 [n, out / 8]."""
    out, n = values.shape
    ordered = np.ascontiguousarray(values.T).reshape(n, out // PER_WORD, PER_WORD)[:, :, ORDER]
    return packing.pack(np.ascontiguousarray(ordered).reshape(n, out), BITS)


def _unpack(words: npt.NDArray[np.int32]) -> npt.NDArray[np.uint8]:
    """int32 [n, out / 8] to uint8 [out, n]."""
    n, per_row = words.shape
    ordered = packing.unpack(words, BITS).reshape(n, per_row, PER_WORD)
    values = np.empty_like(ordered)
    values[:, :, ORDER] = ordered
    return np.ascontiguousarray(values.reshape(n, per_row * PER_WORD).T)

"""Linears on a grid of any kind as the floats that their integers stand for, for grids that no format holds.

Exact: float32 is what every linear dequantizes to. The integers are lost, and readers take it for a float checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from r1quant.checkpoint.artifact import LinearSpec
from r1quant.checkpoint.tensorfile import TensorSpec
from r1quant.core.json import JsonObject, QuantConfig
from r1quant.core.qlinear import QuantizedLinear


@dataclass(frozen=True)
class FloatWeights:
    """Plain floats as an Encoder."""

    name = "safetensors"
    suffixes = ("weight",)

    def problem(self, spec: LinearSpec) -> str | None:
        return None

    def tensor_specs(self, linear: str, spec: LinearSpec) -> list[TensorSpec]:
        return [TensorSpec(f"{linear}.weight", "F32", spec.shape)]

    def encode(self, q: QuantizedLinear, spec: LinearSpec | None = None) -> dict[str, npt.NDArray[Any]]:
        return {"weight": np.ascontiguousarray(q.dequantize())}

    def quant_config(
        self, linear_specs: Mapping[str, LinearSpec], plain: tuple[str, ...], meta: JsonObject
    ) -> QuantConfig:
        return {}

    def side_files(self, quant_config: QuantConfig) -> Mapping[str, JsonObject]:
        return {}

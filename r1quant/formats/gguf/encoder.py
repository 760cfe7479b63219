"""GGUF as what quantize writes: a linear as one tensor of bytes. The file is put together by write.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from r1quant.checkpoint.artifact import LinearSpec
from r1quant.checkpoint.tensorfile import TensorSpec
from r1quant.core.blocklinear import BlockLinear
from r1quant.core.blocktypes import BLOCK_TYPES
from r1quant.core.json import JsonObject, QuantConfig
from r1quant.core.qlinear import QuantizedLinear
from r1quant.errors import RecipeError
from r1quant.formats.gguf.superblocks import pack


@dataclass(frozen=True)
class GgufBlocks:
    """GGUF's block types as an Encoder: a linear is one tensor of bytes."""

    name = "gguf"
    suffixes = ("weight",)

    def problem(self, spec: LinearSpec) -> str | None:
        if spec.type is None:
            return "it is not on a block type of GGUF"
        of = BLOCK_TYPES[spec.type]
        return f"its {spec.shape[1]} columns are not a multiple of {of.block}" if spec.shape[1] % of.block else None

    def tensor_specs(self, linear: str, spec: LinearSpec) -> list[TensorSpec]:
        out, columns = spec.shape
        return [TensorSpec(f"{linear}.weight", "U8", (out, BLOCK_TYPES[spec.type or "Q8_0"].row_bytes(columns)))]

    def encode(self, q: QuantizedLinear, spec: LinearSpec | None = None) -> dict[str, npt.NDArray[Any]]:
        if not isinstance(q, BlockLinear):
            raise RecipeError(f"a linear of the grid {q.kind} has no blocks of GGUF", "use --format gguf with a --type")
        return {"weight": pack(q)}

    def quant_config(
        self, linear_specs: Mapping[str, LinearSpec], plain: tuple[str, ...], meta: JsonObject
    ) -> QuantConfig:
        return {}

    def side_files(self, quant_config: QuantConfig) -> Mapping[str, JsonObject]:
        return {}

"""The GPTQ checkpoint format, version 1 as written, versions 1 and 2 as read.

Per linear: qweight int32 [in * bits / 32, out], codes packed along the input; qzeros int32 [groups, out * bits / 32],
zero points packed along the output, stored minus one in version 1; scales float16 [groups, out]; g_idx int32 [in].
The configuration stands twice with the same content, in config.json and in quantize_config.json, because readers
differ in where they look.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from r1quant import bits as packing
from r1quant.checkpoint import Checkpoint
from r1quant.errors import CheckpointError, RecipeError
from r1quant.grid import Grid
from r1quant.qlinear import QLinear
from r1quant.tensorfile import TensorSpec

if TYPE_CHECKING:
    import torch

Arrays = Mapping[str, npt.NDArray[Any]]
SUFFIXES = ("qweight", "qzeros", "scales", "g_idx")


def problem(shape: tuple[int, int], grid: Grid) -> str | None:
    """Why a linear of shape (out, in) cannot be stored on this grid; None where it can."""
    out, columns = shape
    block = packing.values_per_block(grid.bits)
    if columns % block:
        return f"{columns} input columns are not a multiple of {block}, which {grid.bits}-bit packing needs"
    if out % block:
        return f"{out} output rows are not a multiple of {block}, which {grid.bits}-bit zero points need"
    return None


def specs(linear: str, shape: tuple[int, int], grid: Grid) -> list[TensorSpec]:
    """What will be written for a linear, in the order of encode."""
    out, columns = shape
    groups = grid.groups(columns)
    return [
        TensorSpec(f"{linear}.qweight", "I32", (columns * grid.bits // 32, out)),
        TensorSpec(f"{linear}.qzeros", "I32", (groups, out * grid.bits // 32)),
        TensorSpec(f"{linear}.scales", "F16", (groups, out)),
        TensorSpec(f"{linear}.g_idx", "I32", (columns,)),
    ]


def encode(q: QLinear) -> dict[str, npt.NDArray[Any]]:
    """Tensors by suffix. Raises RecipeError where a zero point is 0, which version 1 cannot store."""
    if not q.zero.all():
        raise RecipeError(
            "a zero point is 0, and the GPTQ format (version 1) stores zero points minus one",
            "quantize with --symmetric, or choose another --format",
        )
    return {
        "qweight": np.ascontiguousarray(packing.pack(q.codes, q.bits).T),
        "qzeros": packing.pack(np.ascontiguousarray((q.zero - np.uint8(1)).T), q.bits),
        "scales": np.ascontiguousarray(q.scale.T),
        "g_idx": q.group,
    }


def decode(arrays: Arrays, bits: int, version: int = 1) -> QLinear:
    """The inverse of encode, for any group map."""
    zero = packing.unpack(arrays["qzeros"], bits).T
    if version == 1:
        zero = (zero + np.uint8(1)) & np.uint8((1 << bits) - 1)
    return QLinear(
        codes=np.ascontiguousarray(packing.unpack(np.ascontiguousarray(arrays["qweight"].T), bits)),
        scale=np.ascontiguousarray(arrays["scales"].T),
        zero=np.ascontiguousarray(zero),
        group=np.ascontiguousarray(arrays["g_idx"]),
        bits=bits,
    )


def config(grid: Grid, damping: float | None, act_order: bool, tool: str) -> dict[str, Any]:
    """The quantization_config that readers look for. No key is null: some readers cannot bear it."""
    meta: dict[str, Any] = {"quantizer": [tool], "static_groups": True, "act_order": act_order}
    if damping is not None:
        meta["damp_percent"] = damping
    return {
        "quant_method": "gptq",
        "bits": grid.bits,
        "group_size": grid.group_size,
        "desc_act": False,
        "sym": grid.symmetric,
        "lm_head": False,
        "checkpoint_format": "gptq",
        "format": "gptq",
        "method": "gptq",
        "pack_dtype": "int32",
        "meta": meta,
    }


@dataclass(frozen=True)
class GptqWeights:
    """A GPTQ checkpoint seen as a float one: `read("….weight")` gives the dequantized values in float32."""

    checkpoint: Checkpoint
    version: int

    @property
    def config(self) -> Mapping[str, Any]:
        return self.checkpoint.config

    @cached_property
    def tensors(self) -> Mapping[str, str]:
        """Names as in the float checkpoint; the value is the linear's name, or empty for a plain tensor."""
        names: dict[str, str] = {}
        for name in self.checkpoint.tensors:
            linear, _, suffix = name.rpartition(".")
            if suffix == "qweight":
                names[f"{linear}.weight"] = linear
            elif suffix not in SUFFIXES:
                names[name] = ""
        return names

    def qlinear(self, linear: str) -> QLinear:
        """The integers of one linear, as stored."""
        arrays = {suffix: self.checkpoint.read(f"{linear}.{suffix}") for suffix in SUFFIXES}
        columns, words = len(arrays["g_idx"]), len(arrays["qweight"])
        bits = words * 32 // columns if columns else 0
        halves = arrays["scales"].half()
        if bits * columns != words * 32 or bits not in (2, 3, 4, 8) or not bool((halves == arrays["scales"]).all()):
            raise CheckpointError(f"{linear}: not a GPTQ linear that can be read", "the file may be damaged")
        q = decode({k: (halves if k == "scales" else v).numpy() for k, v in arrays.items()}, bits, self.version)
        try:
            q.validate()
        except ValueError as error:
            raise CheckpointError(f"{linear}: {error}", "the file is damaged; download it again") from None
        return q

    def read(self, name: str) -> torch.Tensor:
        import torch

        linear = self.tensors.get(name)
        return torch.from_numpy(self.qlinear(linear).dequantize()) if linear else self.checkpoint.read(name)


def open_weights(checkpoint: Checkpoint) -> GptqWeights:
    """A GPTQ checkpoint, ours or anybody's. Raises CheckpointError for another kind of quantization."""
    stated = checkpoint.config.get("quantization_config")
    if not isinstance(stated, dict) or stated.get("quant_method") != "gptq":
        raise CheckpointError(f"{checkpoint.source} is not a GPTQ checkpoint", "name a folder written by quantize")
    kind = stated.get("checkpoint_format", stated.get("format", "gptq"))
    if kind not in ("gptq", "gptq_v2"):
        raise CheckpointError(f"{checkpoint.source}: checkpoint_format {kind!r} is not known", "use gptq or gptq_v2")
    return GptqWeights(checkpoint, 2 if kind == "gptq_v2" else 1)

"""The compressed-tensors checkpoint format: pack-quantized for 2 to 8 bits, int-quantized for 8.

Packed, per linear: weight_packed int32 [out, in * bits / 32], codes packed along the input; weight_scale [out, groups]
in bfloat16 where that holds the scales, else float16; weight_shape int64 [2]; and, where the grid is not symmetric,
weight_zero_point int32 [out * bits / 32, groups], packed along the output. Unpacked: weight int8 [out, in], signed
codes, with weight_scale and an int8 weight_zero_point.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from r1quant import bits as packing
from r1quant.artifact import Form
from r1quant.floats import round_to
from r1quant.formats.codec import Arrays, refuse, shipped
from r1quant.qlinear import QLinear
from r1quant.tensorfile import TensorSpec


@dataclass(frozen=True)
class CompressedTensors:
    """A Codec. It reads both layouts; `packed` says which one it writes."""

    packed: bool = True

    suffixes = ("weight_packed", "weight", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx")
    telling = "weight_scale"

    @property
    def name(self) -> str:
        return "compressed-tensors" if self.packed else "compressed-tensors-int"

    def problem(self, form: Form) -> str | None:
        if not self.packed and form.bits != 8:
            return f"int-quantized compressed-tensors hold 8 bits, not {form.bits}"
        if form.group_size is None:
            return "compressed-tensors hold groups of neighbouring columns, not act-order"
        if form.scale_bits > 11:
            return "the scales would be written in float16, and a scale does not fit it"
        return None

    def specs(self, linear: str, form: Form) -> list[TensorSpec]:
        (out, columns), groups = form.shape, form.groups
        scale = TensorSpec(f"{linear}.weight_scale", _scale_dtype(form), (out, groups))
        if not self.packed:
            zeros = [] if form.symmetric else [TensorSpec(f"{linear}.weight_zero_point", "I8", (out, groups))]
            return [TensorSpec(f"{linear}.weight", "I8", (out, columns)), scale, *zeros]
        words = -(-out * form.bits // 32)
        zeros = [] if form.symmetric else [TensorSpec(f"{linear}.weight_zero_point", "I32", (words, groups))]
        return [
            TensorSpec(f"{linear}.weight_packed", "I32", (out, -(-columns * form.bits // 32))),
            scale,
            *zeros,
            TensorSpec(f"{linear}.weight_shape", "I64", (2,)),
        ]

    def encode(self, q: QLinear) -> dict[str, npt.NDArray[Any]]:
        refuse(self, q)
        form = Form.of(q)
        dtype = _scale_dtype(form)
        stored = round_to(q.scale.astype(np.float32), dtype)
        scale = stored.view(np.uint16 if dtype == "BF16" else np.float16).reshape(q.scale.shape)
        if not self.packed:
            zeros = {} if form.symmetric else {"weight_zero_point": _signed(q.zero, q.bits)}
            return {"weight": _signed(q.codes, q.bits), "weight_scale": scale, **zeros}
        packed_zeros = np.ascontiguousarray(_pack(np.ascontiguousarray(q.zero.T), q.bits).T)
        return {
            "weight_packed": _pack(q.codes, q.bits),
            "weight_scale": scale,
            **({} if form.symmetric else {"weight_zero_point": packed_zeros}),
            "weight_shape": np.array(q.shape, np.int64),
        }

    def form(self, codes: TensorSpec, arrays: Arrays, config: Mapping[str, Any]) -> Form:
        linear = codes.name.rpartition(".")[0]
        shape, bits = _shape_and_bits(linear, codes.shape, codes.dtype == "I32", arrays, config)
        scale = _scale(arrays, shape[0])
        return Form.found(shape, bits, _group(arrays), _zero(arrays, bits, scale.shape), scale)

    def decode(self, arrays: Arrays, config: Mapping[str, Any], linear: str = "") -> QLinear:
        packed = arrays.get("weight_packed")
        stored = arrays["weight"] if packed is None else packed
        shape, bits = _shape_and_bits(linear, stored.shape, packed is not None, arrays, config)
        if packed is not None:
            codes = np.ascontiguousarray(packing.unpack(packed, bits)[:, : shape[1]])
        elif stored.dtype == np.int8:
            codes = (stored.astype(np.int16) + (1 << (bits - 1))).astype(np.uint8)
        else:
            raise ValueError(f"its weight is {stored.dtype}; only integer weights are read")
        scale = shipped(_scale(arrays, shape[0]))
        group = _group(arrays)
        if group is None:
            if shape[1] % scale.shape[1]:
                raise ValueError(f"{shape[1]} columns are not in {scale.shape[1]} equal groups")
            group = (np.arange(shape[1]) // (shape[1] // scale.shape[1])).astype(np.int32)
        return QLinear(codes, scale, _zero(arrays, bits, scale.shape), group, bits)

    def config(self, forms: Mapping[str, Form], plain: tuple[str, ...], meta: Mapping[str, Any]) -> dict[str, Any]:
        """One config group for all linears, or one for each kind, which then names its linears."""
        kinds: dict[tuple[int, int | None, bool], list[str]] = {}
        for name, form in forms.items():
            kinds.setdefault((form.bits, form.group_size, form.symmetric), []).append(name)
        layout = "pack-quantized" if self.packed else "int-quantized"
        groups = {}
        for i, ((bits, size, symmetric), names) in enumerate(kinds.items()):
            weights = {
                "num_bits": bits,
                "type": "int",
                "symmetric": symmetric,
                "strategy": "channel" if size == -1 else "group",
                "group_size": None if size == -1 else size,
                "dynamic": False,
                "actorder": None,
                "block_structure": None,
                "observer": "minmax",
            }
            targets = ["Linear"] if len(kinds) == 1 else [f"re:^{re.escape(name)}$" for name in names]
            activations = {"input_activations": None, "output_activations": None}
            groups[f"group_{i}"] = {"targets": targets, "format": layout, "weights": weights, **activations}
        return {
            "quant_method": "compressed-tensors",
            "format": layout,
            "quantization_status": "compressed",
            "config_groups": groups,
            "ignore": list(plain),
            "kv_cache_scheme": None,
            "global_compression_ratio": None,
        }

    def side_files(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return {}


def _scale_dtype(form: Form) -> str:
    return "BF16" if form.scale_bits <= 8 else "F16"


def _signed(values: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.int8]:
    return (values.astype(np.int16) - (1 << (bits - 1))).astype(np.int8)


def _pack(values: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.int32]:
    """uint8 [rows, n] to int32 [rows, ceil(n * bits / 32)]; what fills the last word is 0."""
    n = values.shape[-1]
    padded = np.pad(values, ((0, 0), (0, -n % packing.values_per_block(bits))))
    return np.ascontiguousarray(packing.pack(padded, bits)[:, : -(-n * bits // 32)])


def _scale(arrays: Arrays, out: int) -> npt.NDArray[Any]:
    """[out, groups]; one scale for the whole tensor is repeated for every row."""
    scale = arrays["weight_scale"]
    flat = scale.reshape(-1, 1) if scale.ndim != 2 else scale
    if flat.size == 1:
        flat = np.repeat(flat.reshape(1, 1), out, 0)
    if flat.shape[0] != out:
        raise ValueError(f"scales of shape {list(scale.shape)} do not fit {out} rows")
    return flat


def _zero(arrays: Arrays, bits: int, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """uint8 [out, groups], whether stored packed, signed, or not at all."""
    stored = arrays.get("weight_zero_point")
    if stored is None:
        return np.full(shape, 1 << (bits - 1), np.uint8)
    if stored.dtype == np.int32 and stored.shape != shape:
        unpacked = packing.unpack(np.ascontiguousarray(stored.T), bits)[:, : shape[0]]
        return np.ascontiguousarray(unpacked.T)
    signed = stored.astype(np.int64).reshape(-1, 1) if stored.ndim != 2 else stored.astype(np.int64)
    unsigned = np.broadcast_to(signed + (1 << (bits - 1)), shape)
    if int(unsigned.min()) < 0 or int(unsigned.max()) >= 1 << bits:
        raise ValueError("a zero point does not fit its bits")
    return np.ascontiguousarray(unsigned.astype(np.uint8))


def _group(arrays: Arrays) -> npt.NDArray[np.int32] | None:
    """The group map of older files with act-order."""
    stored = arrays.get("weight_g_idx")
    return None if stored is None or (stored < 0).any() else np.ascontiguousarray(stored.astype(np.int32))


def _shape_and_bits(
    linear: str, stored: tuple[int, ...], packed: bool, arrays: Arrays, config: Mapping[str, Any]
) -> tuple[tuple[int, int], int]:
    bits = _stated_bits(linear, config)
    if not packed:
        return (stored[0], stored[1]), bits
    out, columns = (int(n) for n in arrays["weight_shape"])
    if stored != (out, -(-columns * bits // 32)):
        raise ValueError(f"weight_packed {list(stored)} does not hold {out} x {columns} codes of {bits} bits")
    return (out, columns), bits


def _stated_bits(linear: str, config: Mapping[str, Any]) -> int:
    """num_bits of the config group that a linear belongs to."""
    found = None
    for group in (config.get("config_groups") or {}).values():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if not isinstance(weights, Mapping):
            continue
        if weights.get("type", "int") != "int":
            raise ValueError(f"its weights are of type {weights.get('type')}; only integers are read")
        for target in group.get("targets") or []:
            pattern = target.removeprefix("re:")
            named = re.match(pattern, linear) if target != pattern else target == linear
            if named:
                return int(weights["num_bits"])
        found = found if found is not None else int(weights["num_bits"])
    if found is None or not 2 <= found <= 8:
        raise ValueError(f"the configuration states {found} bits")
    return found

"""The compressed-tensors checkpoint format: pack-quantized for 2 to 8 bits, int-quantized for 8.

Packed, per linear: weight_packed int32 [out, in * bits / 32], codes packed along the input; weight_scale float16
[out, groups]; weight_shape int64 [2]; and, if the grid is not symmetric, weight_zero_point int32
[out * bits / 32, groups], packed along the output. Unpacked: weight int8 [out, in], signed codes, with weight_scale and
an int8 weight_zero_point.

Scales are written in float16 even if bfloat16 would hold them: transformers dequantizes in their dtype, and three
more bits keep the weights nearer to exact. transformers 5.23 with compressed-tensors 0.20 loads packed files with zero
points, whoever wrote them, only when it is told to: quantization_config=CompressedTensorsConfig(dequantize=True).
Told so, it takes the bits of one config group for all linears, and reads those of other bits wrong.

A quantized head it loads from either layout. A packed embedding it loads only when told so, and then only if all has
one scheme; an unpacked one always.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from r1quant.checkpoint.artifact import LinearSpec
from r1quant.checkpoint.tensorfile import TensorSpec
from r1quant.core import bits as packing
from r1quant.core.json import JsonObject, QuantConfig
from r1quant.core.qlinear import QLinear, QuantizedLinear
from r1quant.formats.codec import (
    EMBEDDING,
    HEAD,
    Arrays,
    as_stored_scale,
    group_sizes,
    matches,
    packed_shape,
    refuse,
    runs,
    tensor,
    uniform,
    whole,
)
from r1quant.formats.names import patterns, with_fused

INTEGERS = ("int8", "int16", "int32", "int64")


@dataclass(frozen=True)
class CompressedTensors:
    """compressed-tensors as a Codec. It reads both layouts; `packed` says which one it writes."""

    packed: bool = True

    suffixes = (
        "weight_packed", "weight", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx",
        "input_scale", "input_zero_point",
    )  # fmt: skip
    marker_suffix = "weight_scale"

    @property
    def name(self) -> str:
        return "compressed-tensors" if self.packed else "compressed-tensors-int"

    def problem(self, spec: LinearSpec) -> str | None:
        if not self.packed and spec.bits != 8:
            return f"int-quantized compressed-tensors hold 8 bits, not {spec.bits}"
        if spec.group_size is None:
            return "compressed-tensors hold equal groups of neighbouring columns, and these are not (act-order)"
        if spec.scale_bits > 11:
            return "the scales would be written in float16, and a scale does not fit it"
        return None

    def tensor_specs(self, linear: str, spec: LinearSpec) -> list[TensorSpec]:
        (out, columns), groups = spec.shape, spec.groups
        scale = TensorSpec(f"{linear}.weight_scale", "F16", (out, groups))
        if not self.packed:
            zeros = [] if spec.symmetric else [TensorSpec(f"{linear}.weight_zero_point", "I8", (out, groups))]
            return [TensorSpec(f"{linear}.weight", "I8", (out, columns)), scale, *zeros]
        words = -(-out * spec.bits // 32)
        zeros = [] if spec.symmetric else [TensorSpec(f"{linear}.weight_zero_point", "I32", (words, groups))]
        return [
            TensorSpec(f"{linear}.weight_packed", "I32", (out, -(-columns * spec.bits // 32))),
            scale,
            *zeros,
            TensorSpec(f"{linear}.weight_shape", "I64", (2,)),
        ]

    def encode(self, q: QuantizedLinear, spec: LinearSpec | None = None) -> dict[str, npt.NDArray[Any]]:
        q = uniform(self, q)
        spec = refuse(self, q, spec)
        scale = np.ascontiguousarray(q.scale.astype(np.float16, copy=False))
        if not self.packed:
            zeros = {} if spec.symmetric else {"weight_zero_point": _signed(q.zero, q.bits)}
            return {"weight": _signed(q.codes, q.bits), "weight_scale": scale, **zeros}
        packed_zeros = np.ascontiguousarray(_pack(np.ascontiguousarray(q.zero.T), q.bits).T)
        return {
            "weight_packed": _pack(q.codes, q.bits),
            "weight_scale": scale,
            **({} if spec.symmetric else {"weight_zero_point": packed_zeros}),
            "weight_shape": np.array(q.shape, np.int64),
        }

    def linear_spec(self, codes: TensorSpec, arrays: Arrays, quant_config: QuantConfig) -> LinearSpec:
        grid = _all_but_codes(codes, arrays, quant_config)
        return LinearSpec.of_arrays(grid.shape, grid.bits, grid.group, grid.zero, grid.scale)

    def decode(self, arrays: Arrays, quant_config: QuantConfig, linear: str = "") -> QLinear:
        suffix = "weight_packed" if "weight_packed" in arrays else "weight"
        stored = tensor(arrays, suffix, ("int32",) if suffix == "weight_packed" else INTEGERS[:1], (None, None))
        header = TensorSpec(f"{linear}.{suffix}", "I32" if suffix == "weight_packed" else "I8", stored.shape)
        grid = _all_but_codes(header, arrays, quant_config)
        if suffix == "weight_packed":
            codes = np.ascontiguousarray(packing.unpack(stored, grid.bits)[:, : grid.shape[1]])
        else:
            codes = _unsigned(stored, grid.bits, "code")
        return QLinear(codes, as_stored_scale(grid.scale), grid.zero, grid.group, grid.bits)

    def quant_config(
        self, linear_specs: Mapping[str, LinearSpec], plain: tuple[str, ...], meta: JsonObject
    ) -> QuantConfig:
        """One config group for all linears, or one for each kind, which then names its linears.

        They are named one by one and as vLLM and SGLang fuse them. The head is a linear to readers even if it is the
        embedding, so it is ignored by name unless quantized. If it is quantized it is named too, since it is of a class
        of its own in vLLM; the embedding is known by its class, since vLLM tells not every model's its name.
        """
        sizes = group_sizes(linear_specs)
        kinds: dict[tuple[int, int | None, bool], list[str]] = {}
        for name, spec in linear_specs.items():
            kinds.setdefault((spec.bits, sizes[name], spec.symmetric), []).append(name)
        layout = "pack-quantized" if self.packed else "int-quantized"
        alike = sum(not set(names) <= {EMBEDDING, HEAD} for names in kinds.values()) == 1
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
            targets = _targets(names, alike)
            activations = {"input_activations": None, "output_activations": None}
            groups[f"group_{i}"] = {"targets": targets, "format": layout, "weights": weights, **activations}
        return {
            "quant_method": "compressed-tensors",
            "format": layout,
            "quantization_status": "compressed",
            "config_groups": groups,
            "ignore": with_fused((*plain, *({HEAD} - linear_specs.keys()))),
            "kv_cache_scheme": None,
            "global_compression_ratio": None,
        }

    def side_files(self, quant_config: QuantConfig) -> Mapping[str, JsonObject]:
        return {}


def _targets(names: list[str], alike: bool) -> list[str]:
    """What a config group says to hold these linears. alike: whether all groups but this one hold tables alone.

    The head comes before the class that it would be found by too: a pattern that finds nothing new is warned of.
    """
    layers = [f"re:{pattern}" for pattern in patterns(name for name in names if name not in (EMBEDDING, HEAD))]
    head = [f"re:{pattern}" for pattern in patterns([HEAD])] if HEAD in names else []
    embedding = ["Embedding"] if EMBEDDING in names else []
    return [*head, "Linear", *embedding] if alike and layers else [*layers, *head, *embedding]


def _signed(values: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.int8]:
    return (values.astype(np.int16) - (1 << (bits - 1))).astype(np.int8)


def _pack(values: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.int32]:
    """uint8 [rows, n] to int32 [rows, ceil(n * bits / 32)]; what fills the last word is 0."""
    n = values.shape[-1]
    padded = np.pad(values, ((0, 0), (0, -n % packing.values_per_block(bits))))
    return np.ascontiguousarray(packing.pack(padded, bits)[:, : -(-n * bits // 32)])


def _unsigned(values: npt.NDArray[Any], bits: int, what: str) -> npt.NDArray[np.uint8]:
    """The inverse of _signed. Raises ValueError if a value does not fit."""
    low, high = int(values.min()), int(values.max())
    half = 1 << (bits - 1)
    if low < -half or high >= half:
        raise ValueError(f"a {what} of {low if low < -half else high} does not fit {bits} bits")
    return np.ascontiguousarray((values.astype(np.int16) + half).astype(np.uint8))


@dataclass(frozen=True)
class _Grid:
    """A linear but for its codes. scale, zero: [out, groups]"""

    shape: tuple[int, int]
    bits: int
    group: npt.NDArray[np.int32]
    scale: npt.NDArray[Any]
    zero: npt.NDArray[np.uint8]


def _all_but_codes(codes: TensorSpec, arrays: Arrays, quant_config: QuantConfig) -> _Grid:
    linear, _, suffix = codes.name.rpartition(".")
    weights = _weights(linear, quant_config)
    bits = whole(weights, "num_bits") or 0
    if not 2 <= bits <= 8:
        raise ValueError(f"the configuration states {bits} bits")
    if suffix == "weight_packed":
        packed = packed_shape(codes)
        out, columns = (int(n) for n in tensor(arrays, "weight_shape", INTEGERS, (2,)))
        if out < 1 or columns < 1 or packed != (out, -(-columns * bits // 32)):
            raise ValueError(f"weight_packed {list(packed)} does not hold {out} x {columns} codes of {bits} bits")
    elif suffix != "weight":
        raise ValueError("weight_packed is missing")
    elif codes.dtype != "I8" or len(codes.shape) != 2 or 0 in codes.shape:
        raise ValueError(f"weight is {codes.dtype} {list(codes.shape)}, not a matrix of I8")
    else:
        out, columns = codes.shape
    scale = _per_row(arrays, "weight_scale", ("float16", "float32"), out)
    groups = scale.shape[1]
    if "weight_g_idx" in arrays and int(tensor(arrays, "weight_g_idx", INTEGERS, (columns,)).min()) >= 0:
        group = np.ascontiguousarray(arrays["weight_g_idx"].astype(np.int32))
        if int(group.max()) >= groups:
            raise ValueError(f"weight_g_idx names a group beyond the {groups} that have scales")
    else:
        group = runs(columns, groups, whole(weights, "group_size") or -1)
    return _Grid((out, columns), bits, group, scale, _zero(arrays, bits, suffix == "weight_packed", (out, groups)))


def _per_row(arrays: Arrays, suffix: str, dtypes: tuple[str, ...], out: int) -> npt.NDArray[Any]:
    """[out, groups]; one number for the whole tensor is repeated for every row."""
    stored = arrays.get(suffix)
    if stored is not None and stored.size == 1:
        stored = np.broadcast_to(stored.reshape(1, 1), (out, 1))
    elif stored is not None and stored.ndim == 1:
        stored = stored.reshape(-1, 1)
    return tensor({} if stored is None else {suffix: stored}, suffix, dtypes, (out, None))


def _zero(arrays: Arrays, bits: int, packed: bool, shape: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """uint8 [out, groups], whether stored packed, signed, or not at all. Beside packed codes, I32 means packed."""
    out, groups = shape
    stored = arrays.get("weight_zero_point")
    if stored is None:
        return np.full(shape, 1 << (bits - 1), np.uint8)
    if packed and stored.dtype == np.int32 and stored.ndim == 2:
        words = tensor(arrays, "weight_zero_point", ("int32",), (-(-out * bits // 32), groups))
        return np.ascontiguousarray(packing.unpack(np.ascontiguousarray(words.T), bits)[:, :out].T)
    signed = _per_row(arrays, "weight_zero_point", INTEGERS, out)
    if signed.shape != shape:
        raise ValueError(f"weight_zero_point {list(stored.shape)} does not fit the scales of {groups} groups")
    return _unsigned(signed, bits, "zero point")


def _weights(linear: str, quant_config: QuantConfig) -> JsonObject:
    """The weight scheme of the config group that a linear belongs to: named exactly, by a pattern, or by its class."""
    by_name = quant_config.get("config_groups")
    groups = [g for g in by_name.values() if isinstance(g, Mapping)] if isinstance(by_name, Mapping) else []
    kind = "Embedding" if linear.endswith("embed_tokens") else "Linear"
    ranked: list[tuple[int, JsonObject]] = []
    for group in groups:
        targets = group.get("targets")
        for target in map(str, targets if isinstance(targets, list) else ()):
            if target in (linear, kind):
                ranked.append((0 if target == linear else 2, group))
            elif target.startswith("re:") and matches(target.removeprefix("re:"), linear):
                ranked.append((1, group))
    if not ranked:
        raise ValueError("no config group names it")
    weights = min(ranked, key=lambda entry: entry[0])[1].get("weights")
    if not isinstance(weights, Mapping):
        raise ValueError("its config group has no weights")
    if weights.get("type", "int") != "int":
        raise ValueError(f"its weights are of type {weights.get('type')}; only integers are read")
    return weights

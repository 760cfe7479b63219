"""The GPTQ checkpoint format, versions 1 and 2.

Per linear: qweight int32 [in * bits / 32, out], codes packed along the input; qzeros int32 [groups, out * bits / 32],
zero points packed along the output, stored minus one in version 1; scales float16 [groups, out]; g_idx int32 [in].
The configuration stands twice with the same content, in config.json and in quantize_config.json, because readers
differ in the file that they look into.

gptqmodel subtracts one from whole words of zero points, so that a zero point of 0 borrows from its neighbour, and adds
it back in the same way; others do it to each zero point. Its own files are read as it reads them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from r1quant.checkpoint.artifact import LinearSpec
from r1quant.checkpoint.tensorfile import TensorSpec
from r1quant.core import bits as packing
from r1quant.core.json import JsonObject, QuantConfig
from r1quant.core.qlinear import QLinear, QuantizedLinear
from r1quant.formats.codec import (
    HEAD,
    Arrays,
    as_stored_scale,
    group_sizes,
    matches,
    packed_shape,
    refuse,
    require_tables,
    runs,
    tensor,
    uniform,
    whole,
)
from r1quant.formats.names import patterns

BITS = (2, 3, 4, 8)
END = r"(?:\.|$)"  # some readers match rules with modules, some with tensors


@dataclass(frozen=True)
class Gptq:
    """GPTQ as a Codec. version 1 is what every reader takes; version 2 differs in the stored zero points alone."""

    version: Literal[1, 2] = 1

    @property
    def name(self) -> str:
        return "gptq" if self.version == 1 else "gptq-v2"

    @property
    def suffixes(self) -> tuple[str, ...]:
        return "qweight", "qzeros", "scales", "g_idx"

    @property
    def marker_suffix(self) -> str:
        return "qweight"

    def problem(self, spec: LinearSpec) -> str | None:
        (out, columns), block = spec.shape, packing.values_per_block(spec.bits)
        if spec.bits not in BITS:
            return f"GPTQ files hold 2, 3, 4 or 8 bits, not {spec.bits}"
        if columns % block:
            return f"{columns} input columns are not a multiple of {block}, which {spec.bits}-bit packing needs"
        if out % block:
            return f"{out} output rows are not a multiple of {block}, which {spec.bits}-bit zero points need"
        if spec.scale_bits > 11:
            return "GPTQ files hold float16 scales, and a scale does not fit float16"
        if self.version == 1 and spec.zeros[0] == 0:
            return "a zero point is 0, and GPTQ version 1 stores zero points minus one; gptq-v2 holds it"
        return None

    def tensor_specs(self, linear: str, spec: LinearSpec) -> list[TensorSpec]:
        out, columns = spec.shape
        return [
            TensorSpec(f"{linear}.qweight", "I32", (columns * spec.bits // 32, out)),
            TensorSpec(f"{linear}.qzeros", "I32", (spec.groups, out * spec.bits // 32)),
            TensorSpec(f"{linear}.scales", "F16", (spec.groups, out)),
            TensorSpec(f"{linear}.g_idx", "I32", (columns,)),
        ]

    def encode(self, q: QuantizedLinear, spec: LinearSpec | None = None) -> dict[str, npt.NDArray[Any]]:
        q = uniform(self, q)
        refuse(self, q, spec)
        zero = q.zero - np.uint8(1) if self.version == 1 else q.zero
        return {
            "qweight": np.ascontiguousarray(packing.pack(q.codes, q.bits).T),
            "qzeros": packing.pack(np.ascontiguousarray(zero.T), q.bits),
            "scales": np.ascontiguousarray(q.scale.T.astype(np.float16, copy=False)),
            "g_idx": q.group,
        }

    def linear_spec(self, codes: TensorSpec, arrays: Arrays, quant_config: QuantConfig) -> LinearSpec:
        bits, group, scale, zero = self._all_but_codes(codes, arrays, quant_config)
        return LinearSpec.of_arrays((codes.shape[1], len(group)), bits, group, zero, scale)

    def decode(self, arrays: Arrays, quant_config: QuantConfig, linear: str = "") -> QLinear:
        words = tensor(arrays, "qweight", ("int32",), (None, None))
        header = TensorSpec(f"{linear}.qweight", "I32", words.shape)
        bits, group, scale, zero = self._all_but_codes(header, arrays, quant_config)
        codes = np.ascontiguousarray(packing.unpack(np.ascontiguousarray(words.T), bits))
        return QLinear(codes, as_stored_scale(scale), zero, group, bits)

    def _all_but_codes(
        self, codes: TensorSpec, arrays: Arrays, quant_config: QuantConfig
    ) -> tuple[int, npt.NDArray[np.int32], npt.NDArray[Any], npt.NDArray[np.uint8]]:
        """Bits, group map, scale and zero, both [out, groups].

        The group map says how many columns there are, and so how many bits a code has. Some files lack it.
        """
        words, out = packed_shape(codes)
        scale = tensor(arrays, "scales", ("float16", "float32"), (None, out)).T
        if "g_idx" in arrays:
            group = tensor(arrays, "g_idx", ("int32", "int64"), (None,))
            bits = words * 32 // len(group)
            if bits not in BITS or bits * len(group) != words * 32:
                raise ValueError(f"qweight of {words} words a row does not fit the g_idx of {len(group)} columns")
            if int(group.min()) < 0 or int(group.max()) >= scale.shape[1]:
                raise ValueError(f"g_idx names a group beyond the {scale.shape[1]} that have scales")
            group = np.ascontiguousarray(group.astype(np.int32))
        else:
            options = {**quant_config, **override(quant_config.get("dynamic"), codes.name.rpartition(".")[0])}
            bits = whole(options, "bits") or 0
            if bits not in BITS or words * 32 % bits:
                raise ValueError(f"qweight of {words} words a row does not hold codes of {bits} bits")
            group = runs(words * 32 // bits, scale.shape[1], whole(options, "group_size"))
        packed = tensor(arrays, "qzeros", ("int32",), (scale.shape[1], -(-out * bits // 32)))
        return bits, group, scale, _zero(packed, bits, quant_config)[:out]

    def quant_config(
        self, linear_specs: Mapping[str, LinearSpec], plain: tuple[str, ...], meta: JsonObject
    ) -> QuantConfig:
        """No key is null, and `dynamic` is there only if linears differ: some readers cannot bear either.

        Its rules take linears by their own names and by those of the layers that vLLM and SGLang fuse them into. A
        quantized head is a linear like any other, for which `lm_head` says that it is one. Raises RecipeError for an
        embedding, which no reader looks for.
        """
        require_tables(self, linear_specs)
        sizes = group_sizes(linear_specs)
        kinds = {name: (spec.bits, sizes[name] or nominal(spec)) for name, spec in linear_specs.items()}
        bits, group_size = Counter(kinds.values()).most_common(1)[0][0]
        dynamic: dict[str, dict[str, int]] = {}
        for kind in sorted(set(kinds.values()) - {(bits, group_size)}):
            rules = patterns([name for name in kinds if kinds[name] == kind], END)
            dynamic |= {f"+:{rule}": {"bits": kind[0], "group_size": kind[1]} for rule in rules}
        dynamic |= {f"-:{rule}": {} for rule in patterns([name for name in plain if name != HEAD], END)}
        return {
            "quant_method": "gptq",
            "bits": bits,
            "group_size": group_size,
            "desc_act": any(spec.group_size is None for spec in linear_specs.values()),
            "sym": all(spec.symmetric for spec in linear_specs.values()),
            "lm_head": HEAD in linear_specs,
            "checkpoint_format": "gptq" if self.version == 1 else "gptq_v2",
            "format": "gptq" if self.version == 1 else "gptq_v2",
            "method": "gptq",
            "pack_dtype": "int32",
            **({"dynamic": dynamic} if dynamic else {}),
            "meta": dict(meta),
        }

    def side_files(self, quant_config: QuantConfig) -> Mapping[str, JsonObject]:
        return {"quantize_config.json": quant_config}


def nominal(spec: LinearSpec) -> int:
    """The group size that a configuration states if g_idx says which columns are in a group."""
    return -(-spec.shape[1] // spec.groups)


def version_of(quant_config: QuantConfig) -> int | None:
    """The version that a quantization_config states: 1 if it says nothing, None if it is another format."""
    layout = quant_config.get("checkpoint_format") or quant_config.get("format") or "gptq"
    return {"gptq": 1, "gptq_v2": 2}.get(str(layout))


def override(dynamic: object, linear: str) -> JsonObject:
    """What the first matching rule of `dynamic` says of a linear; nothing if none matches."""
    for rule, values in dynamic.items() if isinstance(dynamic, Mapping) else ():
        if matches(rule.removeprefix("+:").removeprefix("-:"), linear):
            return values if isinstance(values, Mapping) else {}
    return {}


def _zero(words: npt.NDArray[np.int32], bits: int, quant_config: QuantConfig) -> npt.NDArray[np.uint8]:
    """uint8 [out, groups] from the packed zero points [groups, words], which may hold some more than out."""
    if version_of(quant_config) == 1 and 32 % bits == 0 and _by_gptqmodel(quant_config):
        ones = packing.pack(np.ones(32 // bits, np.uint8), bits)
        words = (words.view(np.uint32) + ones.view(np.uint32)).view(np.int32)
        return np.ascontiguousarray(packing.unpack(words, bits).T)
    zero = packing.unpack(words, bits).T
    if version_of(quant_config) == 1:
        zero = (zero + np.uint8(1)) & np.uint8((1 << bits) - 1)
    return np.ascontiguousarray(zero)


def _by_gptqmodel(quant_config: QuantConfig) -> bool:
    meta = quant_config.get("meta")
    return isinstance(meta, Mapping) and "gptqmodel" in str(meta.get("quantizer"))

"""The GPTQ checkpoint format, versions 1 and 2.

Per linear: qweight int32 [in * bits / 32, out], codes packed along the input; qzeros int32 [groups, out * bits / 32],
zero points packed along the output, stored minus one in version 1; scales float16 [groups, out]; g_idx int32 [in].
The configuration stands twice with the same content, in config.json and in quantize_config.json, because readers
differ in where they look.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from r1quant import bits as packing
from r1quant.artifact import Form
from r1quant.formats.codec import Arrays, refuse, shipped
from r1quant.grid import BITS
from r1quant.qlinear import QLinear
from r1quant.tensorfile import TensorSpec


@dataclass(frozen=True)
class Gptq:
    """A Codec. version 1 is what every reader takes; version 2 differs in the stored zero points alone."""

    version: Literal[1, 2] = 1

    @property
    def name(self) -> str:
        return "gptq" if self.version == 1 else "gptq-v2"

    @property
    def suffixes(self) -> tuple[str, ...]:
        return "qweight", "qzeros", "scales", "g_idx"

    @property
    def telling(self) -> str:
        return "qweight"

    def problem(self, form: Form) -> str | None:
        (out, columns), block = form.shape, packing.values_per_block(form.bits)
        if form.bits not in BITS:
            return f"GPTQ files hold 2, 3, 4 or 8 bits, not {form.bits}"
        if columns % block:
            return f"{columns} input columns are not a multiple of {block}, which {form.bits}-bit packing needs"
        if out % block:
            return f"{out} output rows are not a multiple of {block}, which {form.bits}-bit zero points need"
        if form.scale_bits > 11:
            return "GPTQ files hold float16 scales, and a scale does not fit float16"
        if self.version == 1 and form.zeros[0] == 0:
            return "a zero point is 0, and GPTQ version 1 stores zero points minus one; gptq-v2 holds it"
        return None

    def specs(self, linear: str, form: Form) -> list[TensorSpec]:
        out, columns = form.shape
        return [
            TensorSpec(f"{linear}.qweight", "I32", (columns * form.bits // 32, out)),
            TensorSpec(f"{linear}.qzeros", "I32", (form.groups, out * form.bits // 32)),
            TensorSpec(f"{linear}.scales", "F16", (form.groups, out)),
            TensorSpec(f"{linear}.g_idx", "I32", (columns,)),
        ]

    def encode(self, q: QLinear) -> dict[str, npt.NDArray[Any]]:
        refuse(self, q)
        zero = q.zero - np.uint8(1) if self.version == 1 else q.zero
        return {
            "qweight": np.ascontiguousarray(packing.pack(q.codes, q.bits).T),
            "qzeros": packing.pack(np.ascontiguousarray(zero.T), q.bits),
            "scales": np.ascontiguousarray(q.scale.T.astype(np.float16, copy=False)),
            "g_idx": q.group,
        }

    def form(self, codes: TensorSpec, arrays: Arrays, config: Mapping[str, Any]) -> Form:
        words, out = codes.shape
        bits, group = self._bits_and_groups(codes.name.rpartition(".")[0], words, arrays, config)
        zero, scale = self._zero(arrays["qzeros"], bits, config), arrays["scales"].T
        return Form.found((out, len(group)), bits, group, zero, scale)

    def decode(self, arrays: Arrays, config: Mapping[str, Any], linear: str = "") -> QLinear:
        bits, group = self._bits_and_groups(linear, len(arrays["qweight"]), arrays, config)
        return QLinear(
            codes=np.ascontiguousarray(packing.unpack(np.ascontiguousarray(arrays["qweight"].T), bits)),
            scale=shipped(arrays["scales"].T),
            zero=self._zero(arrays["qzeros"], bits, config),
            group=group,
            bits=bits,
        )

    def _zero(self, words: npt.NDArray[np.int32], bits: int, config: Mapping[str, Any]) -> npt.NDArray[np.uint8]:
        zero = packing.unpack(words, bits).T
        if version_of(config) == 1:
            zero = (zero + np.uint8(1)) & np.uint8((1 << bits) - 1)
        return np.ascontiguousarray(zero)

    def _bits_and_groups(
        self, linear: str, words: int, arrays: Arrays, config: Mapping[str, Any]
    ) -> tuple[int, npt.NDArray[np.int32]]:
        """The group map says how many columns there are, and so how many bits a code has. Some files lack it."""
        if "g_idx" in arrays:
            group = np.ascontiguousarray(arrays["g_idx"].astype(np.int32))
            bits = words * 32 // max(1, len(group))
        else:
            stated = {**config, **override(config.get("dynamic") or {}, linear)}
            bits, groups = int(stated.get("bits", 4)), len(arrays["scales"])
            columns = words * 32 // bits
            size = int(stated.get("group_size", -1))
            group = (np.arange(columns) // (columns if size < 1 else size)).astype(np.int32)
            if int(group.max(initial=0)) >= groups:
                raise ValueError(f"there are {groups} groups of scales, fewer than groups of {size} columns need")
        if bits * len(group) != words * 32 or bits not in BITS:
            raise ValueError("the packed codes and the group map do not fit together")
        return bits, group

    def config(self, forms: Mapping[str, Form], plain: tuple[str, ...], meta: Mapping[str, Any]) -> dict[str, Any]:
        """No key is null, and `dynamic` is there only where linears differ: some readers cannot bear either."""
        kinds = Counter((form.bits, nominal(form)) for form in forms.values())
        bits, group_size = kinds.most_common(1)[0][0]
        dynamic: dict[str, Any] = {}
        for name, form in forms.items():
            if (form.bits, nominal(form)) != (bits, group_size):
                dynamic[f"+:^{re.escape(name)}$"] = {"bits": form.bits, "group_size": nominal(form)}
        dynamic |= {f"-:^{re.escape(name)}$": {} for name in plain}
        return {
            "quant_method": "gptq",
            "bits": bits,
            "group_size": group_size,
            "desc_act": any(form.group_size is None for form in forms.values()),
            "sym": all(form.symmetric for form in forms.values()),
            "lm_head": "lm_head" in forms,
            "checkpoint_format": "gptq" if self.version == 1 else "gptq_v2",
            "format": "gptq" if self.version == 1 else "gptq_v2",
            "method": "gptq",
            "pack_dtype": "int32",
            **({"dynamic": dynamic} if dynamic else {}),
            "meta": dict(meta),
        }

    def side_files(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return {"quantize_config.json": config}


def nominal(form: Form) -> int:
    """The group size that a configuration states, also where g_idx says which columns are in a group."""
    return form.group_size if form.group_size is not None else -(-form.shape[1] // form.groups)


def version_of(config: Mapping[str, Any]) -> int:
    """The version that a quantization_config states; 1 where it says nothing."""
    stated = config.get("checkpoint_format", config.get("format", "gptq"))
    return 2 if stated == "gptq_v2" else 1


def override(dynamic: Mapping[str, Any], linear: str) -> Mapping[str, Any]:
    """What the first matching rule of `dynamic` says of a linear; nothing where none matches."""
    for rule, values in dynamic.items():
        if re.match(rule.removeprefix("+:").removeprefix("-:"), linear):
            return values if isinstance(values, Mapping) else {}
    return {}

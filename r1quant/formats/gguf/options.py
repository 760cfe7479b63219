"""What a GGUF file can hold, and how it shall be written: known from a LinearSpec alone, without the gguf package.

A block is 32 neighbouring weights of a row with a scale of their own. What decides is the range of code - zero point
and, if a type stores an offset, how many significant bits scale * zero point can have. It does not know files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from r1quant.checkpoint.artifact import LinearSpec
from r1quant.core.blocktypes import BLOCKS
from r1quant.errors import RecipeError

BLOCK = 32
HALF_BITS = 11  # significant bits of float16
# The differences code - zero point that a type holds; Q4_1 stores codes 0..15 and an offset instead.
RANGES = {"q4_0": (-8, 7), "q5_0": (-16, 15), "q8_0": (-128, 127)}
BLOCK_TYPES = ("q4_0", "q4_1", "q5_0", "q8_0")  # from the smallest to the largest
FLOAT_TYPES = ("f16", "bf16", "f32")
TYPES = ("auto", *BLOCK_TYPES, *FLOAT_TYPES)
TABLE_TYPES = ("auto", "exact", "f16", "q8_0")
# llama_ftype: what llama.cpp calls a file by the types of its tensors.
FILE_TYPES: Mapping[str, int] = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K_S": 11, "Q3_K_M": 12,
    "Q3_K_L": 13, "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18, "IQ2_XXS": 19, "IQ2_XS": 20,
    "Q2_K_S": 21, "IQ3_XS": 22, "IQ3_XXS": 23, "IQ1_S": 24, "IQ4_NL": 25, "IQ3_S": 26, "IQ3_M": 27, "IQ2_S": 28,
    "IQ2_M": 29, "IQ4_XS": 30, "IQ1_M": 31, "BF16": 32,
}  # fmt: skip
# What llama.cpp's own quantizer makes for us. Those whose blocks are not on the uniform grid are K_QUANTS.
REQUANTIZED = (
    "Q4_0", "Q8_0", "Q2_K", "Q3_K_M", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "IQ4_NL", "IQ4_XS",
)  # fmt: skip
K_QUANTS = tuple(name for name in REQUANTIZED if name.lower() not in BLOCK_TYPES)
SMALLEST_PART = 1 << 20


@dataclass(frozen=True)
class GgufOptions:
    """How a GGUF file is written.

    type         auto: the smallest exact type of a quantized linear (its own, if it has blocks of GGUF), and float
                 linears as they are stored; else one type for all linears. Float linears are rounded to it; quantized
                 ones must fit exactly
    embedding    auto: exact, but a float `type` goes for the whole file; exact: as stored; or f16, q8_0
    head         likewise
    split_bytes  about how large a part may become; None for one file
    pre          the name of the pre-tokenizer rule, if it cannot be told from tokenizer.json
    name         general.name; None takes the model's own
    mixture      what the file is called by its types, a key of FILE_TYPES; None goes by the type of most weights
    """

    type: str = "auto"
    embedding: str = "auto"
    head: str = "auto"
    split_bytes: int | None = None
    pre: str | None = None
    name: str | None = None
    mixture: str | None = None

    def __post_init__(self) -> None:
        for option, value, allowed in (
            ("type", self.type, TYPES),
            ("embedding", self.embedding, TABLE_TYPES),
            ("head", self.head, TABLE_TYPES),
            ("mixture", self.mixture, (None, *FILE_TYPES)),
        ):
            if value not in allowed:
                choice = ", ".join(filter(None, allowed))
                raise RecipeError(f"GGUF {option} {value!r} is not known", f"choose one of: {choice}")
        if self.split_bytes is not None and self.split_bytes < SMALLEST_PART:
            raise RecipeError(
                f"a GGUF part of {self.split_bytes} bytes is too small", "split at 1 MB or more, or not at all"
            )


def problem(spec: LinearSpec, kind: str = "auto") -> str | None:
    """Why a quantized linear cannot be held exactly in a type of TYPES, and what to do; None if it can."""
    if kind == "f32":
        return None
    if spec.kind == BLOCKS:
        alike = kind in ("auto", smallest(spec))
        return None if alike else f"it has blocks of {spec.type}, not {kind.upper()}: let the type be chosen (auto)"
    if kind in ("f16", "bf16"):
        return _float_problem(spec, kind)
    if spec.shape[1] % BLOCK:
        return f"its {spec.shape[1]} columns are not a multiple of 32, the block of GGUF: write this model as f32"
    if spec.group_size is None:
        return "its groups are not runs of neighbouring columns (act-order): quantize it without act-order"
    if spec.group_size != -1 and spec.group_size % BLOCK:
        return f"group size {spec.group_size} is not a multiple of 32, the block of GGUF: quantize with 32, 64 or 128"
    if spec.scale_bits > HALF_BITS:
        return "its scales are not float16 numbers, which GGUF stores: quantize with float16 scales"
    if kind == "auto":
        return None if smallest(spec) else _range_problem(spec, "q8_0")
    return _offset_problem(spec) if kind == "q4_1" else _range_problem(spec, kind)


def smallest(spec: LinearSpec) -> str | None:
    """The smallest block type that holds a linear exactly, of those that `problem` passes; None if none does.

    If its blocks are those of GGUF, their own type, which need not be one of BLOCK_TYPES.
    """
    if spec.type is not None:
        return spec.type.lower()
    return next((kind for kind in BLOCK_TYPES if problem(spec, kind) is None), None)


def differences(spec: LinearSpec) -> tuple[int, int]:
    """The smallest and the largest code - zero point that a linear can have."""
    return -spec.zeros[1], (1 << spec.bits) - 1 - spec.zeros[0]


def _range_problem(spec: LinearSpec, kind: str) -> str | None:
    (low, high), (least, most) = differences(spec), RANGES[kind]
    if least <= low and high <= most:
        return None
    remedy = "quantize symmetrically" if kind == "q8_0" else "let the type be chosen (auto)"
    return f"its weights are {low} .. {high} steps of the scale, {kind.upper()} holds {least} .. {most}: {remedy}"


def _offset_problem(spec: LinearSpec) -> str | None:
    if spec.bits > 4:
        return f"its {spec.bits}-bit codes do not fit Q4_1: let the type be chosen (auto)"
    need = spec.scale_bits + max(1, spec.zeros[1].bit_length())
    if need > HALF_BITS:
        return f"scale * zero point has up to {need} significant bits, the offset of Q4_1 has 11: take q5_0 or auto"
    return None


def _float_problem(spec: LinearSpec, kind: str) -> str | None:
    low, high = differences(spec)
    need, have = spec.scale_bits + max(-low, high).bit_length(), HALF_BITS if kind == "f16" else 8
    if need <= have:
        return None
    return f"its weights have up to {need} significant bits, {kind.upper()} has {have}: take f32, or auto"

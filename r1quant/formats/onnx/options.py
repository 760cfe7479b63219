"""What can be chosen of an ONNX export, and which quantized linears it can hold. It needs no onnx package."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args, get_type_hints

from r1quant.arch.tables import Architecture
from r1quant.checkpoint.artifact import LinearSpec
from r1quant.errors import RecipeError
from r1quant.formats.evenly import has_offsets, spec_of, uneven

Style = Literal["matmulnbits", "qdq"]
Dtype = Literal["float32", "float16"]
Whole = Literal["exact", "q8"]

BLOCK_SIZES = (16, 32, 64, 128, 256)  # of MatMulNBits; a power of two
FLOAT16_BITS = 11
PLANE_BITS = 24  # of a code and a scale together
LEVELS = range(5)
STAGES = ("qkv", "attention_out", "gate_up", "down")  # of the layers that the graph is built for


@dataclass(frozen=True)
class OnnxOptions:
    """How an ONNX folder is written.

    style           `matmulnbits`: onnxruntime's own operators, the fast ones. `qdq`: standard operators only (opset
                    21); onnxruntime turns the weights into MatMulNBits when it loads the model
    dtype           of activations, scales, norms and the embedding. float32 holds every tensor exactly
    accuracy_level  what MatMulNBits computes with on a CPU: 1 is float32, 4 rounds the activations to int8, which is
                    a little faster and costs more accuracy than 8-bit weights do; 0 leaves it to the runtime. At
                    1, 2 and 3 codes are stored in 4 bits, 8-bit ones as two halves: only those have a fast kernel
    embedding       `exact`, or `q8`: rounded to 8 bits in blocks of 32
    head            the same for the output projection; with tied embeddings both share one tensor if they agree
    zero_points     write the zero points of symmetric grids too. onnxruntime takes them as 2**(bits-1) if they
                    are missing; DirectML wants them
    threads         written to genai_config.json; 0 leaves it to the runtime, which takes one thread a physical core
    """

    style: Style = "matmulnbits"
    dtype: Dtype = "float32"
    accuracy_level: int = 1
    embedding: Whole = "exact"
    head: Whole = "exact"
    zero_points: bool = False
    threads: int = 0

    def __post_init__(self) -> None:
        """Raises RecipeError naming the option that is not possible."""
        hints = get_type_hints(OnnxOptions)
        for field in fields(self):
            allowed, value = get_args(hints[field.name]), getattr(self, field.name)
            if allowed and value not in allowed:
                raise _refused(field.name, value, " or ".join(allowed))
        if type(self.accuracy_level) is not int or self.accuracy_level not in LEVELS:
            raise _refused("accuracy_level", self.accuracy_level, "0, 1, 2, 3 or 4")
        if type(self.threads) is not int or not 0 <= self.threads < 1 << 16:
            raise _refused("threads", self.threads, "0 or a number of threads")
        if not isinstance(self.zero_points, bool):
            raise _refused("zero_points", self.zero_points, "true or false")
        if self.style == "qdq" and "q8" in (self.embedding, self.head):
            raise RecipeError(
                "ONNX with standard operators keeps embedding and head exact",
                "use the style matmulnbits for an 8-bit embedding or head",
            )


def unsupported(arch: Architecture) -> str | None:
    """Why the graph of a family cannot be built; None if it can."""
    layer = arch.layer
    if tuple(stage.name for stage in layer.stages) != STAGES:
        return f"{arch.model_type} layers are not attention and a gated MLP, of which ONNX graphs are built"
    if layer.post_norms or arch.norm_offset or arch.tensors.scaled_embedding:
        return f"{arch.model_type} layers have norms behind attention and MLP, which no ONNX graph is built with yet"
    return None


def block_size(spec: LinearSpec, options: OnnxOptions) -> int | None:
    """The block in which a linear is stored: the largest that divides its groups; None if there is none.

    A whole row is cut into the blocks that take the fewest bytes, the last one padded. Every block repeats the scale
    of its group, so nothing is rounded.
    """
    if spec.group_size is None:
        return None
    if spec.group_size != -1:
        return max((size for size in BLOCK_SIZES if spec.group_size % size == 0), default=None)
    columns, (width, planes) = spec.shape[1], stored_bits(spec, options)

    def row_bytes(size: int) -> int:
        return -(-columns // size) * planes * (size * width // 8 + 4)

    return min(reversed(BLOCK_SIZES), key=row_bytes)


def stored_bits(spec: LinearSpec, options: OnnxOptions) -> tuple[int, int]:
    """(width, planes): a code is stored in `planes` integers of `width` bits, high bits in the first.

    The width is the next that the operator has, and opset 21 has no 2-bit integers. If MatMulNBits computes in
    float32 only the kernel for 4 bits is fast (20 times faster than that for 8), so wider codes are two of 4 bits,
    as long as float32 holds a code times a scale exactly.
    """
    if options.style == "qdq":
        return (4, 1) if spec.bits <= 4 else (8, 1)
    if options.accuracy_level in (1, 2, 3) and (spec.bits <= 4 or spec.bits + spec.scale_bits <= PLANE_BITS):
        return 4, 1 if spec.bits <= 4 else 2
    return next(width for width in (2, 4, 8) if spec.bits <= width), 1


def problem(spec: LinearSpec, options: OnnxOptions) -> str | None:
    """Why a linear cannot be stored exactly; None if it can."""
    even = spec_of(spec)
    if even is None:
        return uneven(spec)
    if has_offsets(spec) and options.style == "qdq":
        return f"{spec.type} has a float minimum in each group, which the style matmulnbits holds, but not qdq"
    spec = even
    if spec.group_size is None:
        return "its groups are not equal runs of columns (act-order), which ONNX cannot express"
    if block_size(spec, options) is None:
        return f"its groups of {spec.group_size} columns are not a multiple of 16, the smallest block of MatMulNBits"
    if options.dtype == "float16" and spec.scale_bits > FLOAT16_BITS:
        return "float16 cannot hold its scales; float32 can"
    return None


def _refused(name: str, value: object, allowed: str) -> RecipeError:
    return RecipeError(f"ONNX: {name} cannot be {value!r}", f"use {allowed}")

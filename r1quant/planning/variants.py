"""Variants: every way in which r1quant can write a model, format by bits, and how many bytes each takes.

Bytes are those of the formats' own layouts, tensor kind by tensor kind, so that they are the same as a plan's without
a tensor being listed. It does not know hardware.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from r1quant.arch.tables import head_dim, size
from r1quant.checkpoint.artifact import LinearSpec
from r1quant.checkpoint.tensorfile import TensorSpec, header
from r1quant.core.grid import BITS, Grid
from r1quant.errors import CheckpointError
from r1quant.formats.gguf import mixtures
from r1quant.formats.gguf.options import K_QUANTS
from r1quant.formats.onnx.layout import BlockLayout as OnnxLayout
from r1quant.formats.onnx.options import OnnxOptions
from r1quant.formats.onnx.options import problem as onnx_problem
from r1quant.formats.table import CODECS
from r1quant.hardware.inventory import Inventory, InventoryPart
from r1quant.registry import FORMATS

GROUPS = (128, 64, 32, -1)
ROUND = (1024, 1024)  # a shape that every format holds
HEADER_DIGITS = 18  # of a tensor's two offsets in a header, beyond those of one that stands alone
VOCABULARY_BYTES = 34  # of one token in GGUF: its text, its kind, its merges
ENTRY_BYTES, KEYS_BYTES = 60, 8500  # in GGUF, of a tensor's entry beside its name, and of all keys but the vocabulary
ALONE = ("out", "down")  # linears that are not stored as one with others in ONNX
GRAPH_BYTES, PAGE = {4: 9000, 8: 14000}, 4096  # of a layer's nodes in ONNX, by bits; where its tensors begin
ONNX_ITEM = {"float32": 4, "float16": 2}
HEADLINES = (
    "gptq-w8", "gptq-w4", "gptq-w3", "awq-w4", "compressed-tensors-w8", "compressed-tensors-w4", "onnx-fp16-w4",
)  # fmt: skip
GGUF_BITS = {
    "Q8_0": 8, "Q6_K": 6, "Q5_K_M": 5, "Q5_K_S": 5, "Q5_0": 5, "Q4_K_M": 4, "Q4_K_S": 4, "Q4_1": 4, "Q4_0": 4,
    "IQ4_XS": 4, "IQ4_NL": 4, "Q3_K_M": 3, "Q2_K": 2,
}  # fmt: skip
GGUF_HEADLINES = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M")


@dataclass(frozen=True)
class FormatVariant:
    """label       gptq-w4-g128, gguf-q4_k_m, fp16: what tells it from all others
    format      of registry.FORMATS
    bits        of a weight, nominally
    group_size  -1 for whole rows, None if the format decides
    kind        of GGUF, the block type or llama.cpp's mixture; of ONNX, the dtype of floats
    """

    label: str
    format: str
    bits: int
    group_size: int | None = None
    kind: str = ""

    @property
    def title(self) -> str:
        """As people call it: Q4_K_M, W4 GPTQ, fp16."""
        if self.format == "gguf":
            return self.kind
        name = {"gptq": "GPTQ", "awq": "AWQ", "onnx": "ONNX"}.get(self.format, self.format)
        return self.label if self.format == "safetensors" else f"W{self.bits} {name}"

    @property
    def backend(self) -> str:
        """What runs it as it is stored, as records call it: torch holds quantized weights dequantized."""
        return {"gguf": "llama.cpp", "onnx": "onnxruntime", "safetensors": "torch"}.get(self.format, "openai")


@dataclass(frozen=True)
class VariantWeights:
    """Bytes of a model in a variant.

    total      of the weight files
    embedding  of the embedding, 0 if it is the head too; it is not read for a token
    experts    of all routed experts together
    """

    total: int
    embedding: int
    experts: int = 0


def variants() -> list[FormatVariant]:
    """All, floats first, then by format and falling bits; of one format and bits the usual group size first."""
    found = [
        FormatVariant("fp16", "safetensors", 16, kind="F16"),
        FormatVariant("bf16", "safetensors", 16, kind="BF16"),
    ]
    for format, codec in CODECS.items():
        for bits in sorted(BITS, reverse=True):
            if codec.problem(LinearSpec.planned(ROUND, Grid(bits))) is None:
                found += [FormatVariant(f"{format}-w{bits}-{_group(group)}", format, bits, group) for group in GROUPS]
    for dtype, name in (("float32", "onnx"), ("float16", "onnx-fp16")):
        for bits in (8, 4):
            found += [
                FormatVariant(f"{name}-w{bits}-{_group(group)}", "onnx", bits, group, dtype) for group in GROUPS[:-1]
            ]
    return found + [FormatVariant(f"gguf-{kind.lower()}", "gguf", bits, kind=kind) for kind, bits in GGUF_BITS.items()]


def held(model: Inventory, wanted: Sequence[FormatVariant]) -> dict[FormatVariant, VariantWeights]:
    """The variants that can hold a model, with their bytes."""
    found = {}
    for variant in wanted:
        with suppress(CheckpointError):
            found[variant] = weigh(variant, model)
    return found


def usual(model: Inventory) -> dict[FormatVariant, VariantWeights]:
    """Those that are shown if nothing is asked for: of the usual formats and bits the first group size that fits."""
    first: dict[tuple[str, int, str], FormatVariant] = {}
    found: dict[FormatVariant, VariantWeights] = {}
    for variant in variants():
        shown = variant.kind in GGUF_HEADLINES or variant.label.rpartition("-")[0] in HEADLINES
        key = variant.format, variant.bits, variant.kind
        if (shown or variant.label == "fp16") and key not in first:
            made = held(model, [variant])
            if made:
                first[key] = variant
                found |= made
    return found


def weigh(variant: FormatVariant, model: Inventory) -> VariantWeights:
    """The bytes of a model in a variant. Raises CheckpointError if the format cannot hold it."""
    sized = {part: _bytes(variant, model, part) for part in model.parts}
    total = sum(sized.values()) + _beside(variant, model)
    embedding = 0 if model.tied else sum(n for part, n in sized.items() if part.role == "embedding")
    return VariantWeights(total, embedding, sum(n for part, n in sized.items() if part.expert))


def _bytes(variant: FormatVariant, model: Inventory, part: InventoryPart) -> int:
    """Of all tensors of a kind, with their entries in a header."""
    if variant.format == "gguf":
        return _gguf(variant, model, part)
    if variant.format == "onnx":
        return _onnx(variant, part)
    specs = [TensorSpec(part.name if not part.linear else f"{part.name}.weight", part.dtype, part.shape)]
    if variant.format == "safetensors":
        specs = [replace(specs[0], dtype=variant.kind)]
    elif part.linear:
        codec, form = CODECS[variant.format], LinearSpec.planned(_shape(part), _grid(variant))
        _check(part, codec.problem(form) or _uneven(part, variant))
        specs = codec.tensor_specs(part.name, form)
    return part.count * sum(spec.nbytes + _entry(spec) for spec in specs)


def _entry(spec: TensorSpec) -> int:
    """Bytes that a tensor takes in a header of safetensors."""
    return len(json.dumps([spec.name, spec.dtype, list(spec.shape)], separators=(",", ":"))) + 34 + HEADER_DIGITS


def _onnx(variant: FormatVariant, part: InventoryPart) -> int:
    item = ONNX_ITEM[variant.kind]
    if not part.linear:
        return part.count * _paged(math.prod(part.shape) * item)
    options = OnnxOptions(dtype="float16" if variant.kind == "float16" else "float32")
    form = LinearSpec.planned(_shape(part), _grid(variant))
    _check(part, onnx_problem(form, options) or _uneven(part, variant))
    shapes = OnnxLayout.of(form, options).shapes
    stored = (math.prod(shape) * (item if name == "scales" else 1) for name, shape in shapes.items())
    return part.count * sum(map(_paged, stored) if part.role in ALONE else stored)


def _paged(count: int) -> int:
    return -(-count // PAGE) * PAGE


def _gguf(variant: FormatVariant, model: Inventory, part: InventoryPart) -> int:
    entries = part.count * (ENTRY_BYTES + len(part.name) // 2)
    if len(part.shape) != 2:
        return entries + part.numbers * 4
    rows, columns = part.shape
    layers = size(model.config, "num_hidden_layers")
    if variant.kind in K_QUANTS:
        heads = size(model.config, "num_attention_heads")
        grouped = heads // size(model.config, "num_key_value_heads", heads)
        role = "head" if part.role == "embedding" and model.tied else part.role
        if role == "plain":
            return entries + part.numbers * 4
        kinds = [mixtures.kind_of(variant.kind, role, layer, layers, grouped, columns) for layer in range(layers)]
        return entries + round(part.count / layers * sum(mixtures.nbytes(kind, rows, columns) for kind in kinds))
    if not part.linear:
        return entries + part.count * mixtures.nbytes(part.dtype, rows, columns)
    _check(part, None if columns % 32 == 0 else f"its {columns} columns are not a multiple of 32")
    return entries + part.count * mixtures.nbytes(variant.kind, rows, columns)


def _beside(variant: FormatVariant, model: Inventory) -> int:
    """Bytes of the files that no tensor of the model takes."""
    config = model.config
    if variant.format == "gguf":
        return KEYS_BYTES + size(config, "vocab_size") * VOCABULARY_BYTES
    if variant.format == "onnx":
        rotary = size(config, "max_position_embeddings", 1) * head_dim(config) * ONNX_ITEM[variant.kind]
        return rotary + size(config, "num_hidden_layers") * GRAPH_BYTES[variant.bits]
    return len(header([], {"format": "pt"}))


def _shape(part: InventoryPart) -> tuple[int, int]:
    return part.shape[0], part.shape[1]


def _check(part: InventoryPart, reason: str | None) -> None:
    if reason:
        raise CheckpointError(f"{part.name}: {reason}", "choose another format")


def _uneven(part: InventoryPart, variant: FormatVariant) -> str | None:
    group, columns = variant.group_size or -1, part.shape[1]
    return f"groups of {group} do not divide its {columns} columns" if group != -1 and columns % group else None


def _group(group: int) -> str:
    return "row" if group == -1 else f"g{group}"


def _grid(variant: FormatVariant) -> Grid:
    return Grid(variant.bits, variant.group_size or -1, True, zero_min=FORMATS[variant.format].zero_min)

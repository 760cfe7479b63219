"""The graph of a Llama-like decoder, in the order of computation, with the inputs and outputs of onnxruntime-genai.

It does not know which operators a part is made of, nor how weights are stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from onnx import TensorProto, ValueInfoProto, helper

from r1quant.arch import rope
from r1quant.arch.tables import Architecture, dimensions
from r1quant.arch.tables import is_tied as tied_by_config
from r1quant.core.json import Config
from r1quant.formats.onnx.dimensions import Dimensions
from r1quant.formats.onnx.graph import Graph, Piece
from r1quant.formats.onnx.options import STAGES
from r1quant.formats.onnx.weights import Weights

POSITIONS_A_PIECE = 4096


class Parts(Protocol):
    """What a set of operators must offer: contrib.py and standard.py. Everything is a name of a value."""

    def start(self) -> None: ...
    def embedding(self, name: str) -> str: ...
    def norm(self, x: str, weight: str, name: str) -> str: ...
    def add_and_norm(self, x: str, residual: str, weight: str, name: str) -> tuple[str, str]: ...
    def linears(self, x: str, names: tuple[str, ...]) -> list[str]: ...
    def attention(self, layer: int, qkv: list[str], norms: tuple[str, ...], prefix: str) -> str: ...
    def gated(self, gate_up: list[str], inner: int, prefix: str) -> str: ...
    def head(self, x: str, name: str) -> str: ...


def build(graph: Graph, weights: Weights, parts: Parts, arch: Architecture, sizes: Dimensions) -> None:
    """Adds the whole model to an empty graph."""
    config = weights.artifact.config
    _interface(graph, weights, sizes)
    _rotary(graph, weights, config, sizes)
    parts.start()
    inner = dimensions(config)["inner"]
    qkv, out, gate_up, down = (arch.layer.stage(name) for name in STAGES)
    x, residual = "", parts.embedding(arch.tensors.embedding)
    for index in range(sizes.layers):
        prefix = arch.layer_prefix(index)

        def named(*names: str, prefix: str = prefix) -> tuple[str, ...]:
            return tuple(prefix + name for name in names)

        weight, result = f"{prefix}{qkv.module}.weight", f"{prefix}{qkv.module}"
        if index == 0:
            x = parts.norm(residual, weight, result)
        else:
            x, residual = parts.add_and_norm(x, residual, weight, result)
        heads = parts.linears(x, named(*qkv.linears))
        norms = named(*(f"{name}.weight" for name in arch.layer.head_norms))
        x = parts.attention(index, heads, norms, prefix + out.module)
        (x,) = parts.linears(x, named(*out.linears))
        weight, result = f"{prefix}{gate_up.module}.weight", f"{prefix}{gate_up.module}"
        x, residual = parts.add_and_norm(x, residual, weight, result)
        x = parts.gated(parts.linears(x, named(*gate_up.linears)), inner, prefix + down.module)
        (x,) = parts.linears(x, named(*down.linears))
    x, _ = parts.add_and_norm(x, residual, arch.tensors.final_norm, arch.tensors.final_norm.removesuffix(".weight"))
    parts.head(x, arch.tensors.embedding if is_tied(weights, arch) else arch.tensors.head)


def is_tied(weights: Weights, arch: Architecture) -> bool:
    """Whether the embedding is the output projection too."""
    return tied_by_config(weights.artifact.config) or not weights.has(arch.tensors.head)


def _interface(graph: Graph, weights: Weights, sizes: Dimensions) -> None:
    def value(name: str, kind: int, *shape: str | int) -> ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, list(shape))

    graph.inputs.append(value("input_ids", TensorProto.INT64, "batch_size", "sequence_length"))
    graph.inputs.append(value("attention_mask", TensorProto.INT64, "batch_size", "total_sequence_length"))
    logits = ("batch_size", "sequence_length", sizes.vocabulary)
    graph.outputs.append(value("logits", weights.kind, *logits))
    for index in range(sizes.layers):
        for part in ("key", "value"):
            for names, prefix, length in (
                (graph.inputs, "past_key_values", "past_sequence_length"),
                (graph.outputs, "present", "total_sequence_length"),
            ):
                shape = ("batch_size", sizes.kv_heads, length, sizes.head)
                names.append(value(f"{prefix}.{index}.{part}", weights.kind, *shape))


def _rotary(graph: Graph, weights: Weights, config: Config, sizes: Dimensions) -> None:
    """cos_cache and sin_cache [context, head / 2], the factor of YaRN multiplied in."""
    for name in ("cos_cache", "sin_cache"):
        graph.add_outside(name, weights.kind, (sizes.context, sizes.head // 2))

    def content() -> Iterator[Piece]:
        for start in range(0, sizes.context, POSITIONS_A_PIECE):
            positions = np.arange(start, min(start + POSITIONS_A_PIECE, sizes.context))
            for name, values in zip(("cos_cache", "sin_cache"), rope.cos_sin(config, positions), strict=True):
                cast = values.astype(weights.numpy_dtype)
                yield Piece(name, start * (cast.nbytes // len(positions)), cast)

    graph.contents.append(content)

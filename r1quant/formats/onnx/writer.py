"""Writes a model as a folder for onnxruntime and onnxruntime-genai: graph, weights, configuration, tokenizer.

Weights are streamed; one quantized linear is in memory at a time. It does not know how the linears were quantized.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from r1quant.arch.tables import Architecture
from r1quant.checkpoint.artifact import Artifact
from r1quant.errors import CheckpointError, RecipeError
from r1quant.formats.onnx import genai
from r1quant.formats.onnx.contrib import Contrib
from r1quant.formats.onnx.decoder import build, is_tied
from r1quant.formats.onnx.dimensions import Dimensions
from r1quant.formats.onnx.graph import Graph
from r1quant.formats.onnx.options import OnnxOptions, unsupported
from r1quant.formats.onnx.standard import Standard
from r1quant.formats.onnx.weights import Weights
from r1quant.storage import atomic, provenance

MODEL, DATA, GENAI = "model.onnx", "model.onnx.data", "genai_config.json"
PROPERTY = "r1quant"
SCHEMA = "r1quant.onnx/1"


@dataclass(frozen=True)
class OnnxFolder:
    """files: all that was written. inexact: why a tensor does not hold the source's numbers exactly, by name."""

    files: list[Path]
    inexact: dict[str, str]


def data_bytes(artifact: Artifact, arch: Architecture, options: OnnxOptions) -> int:
    """The size that model.onnx.data will have. Reads scales and zero points, but no codes."""
    return _graph(artifact, arch, options)[0].size


def write(
    artifact: Artifact,
    arch: Architecture,
    folder: Path,
    options: OnnxOptions,
    step: Callable[[int], None] = lambda written: None,
) -> OnnxFolder:
    """Writes into an existing empty folder. step is called with the number of bytes just written.

    Raises CheckpointError if tensors are missing or do not fit the configuration, RecipeError if a linear
    cannot be stored exactly, NumericError if a number is not finite or beyond the chosen dtype.
    """
    graph, weights, sizes = _graph(artifact, arch, options)
    graph.write_data(folder / DATA, step)
    about = {
        "schema": SCHEMA,
        "options": asdict(options),
        "tied": is_tied(weights, arch),
        "linears": weights.stored,
        "inexact": weights.inexact,
    }
    model = graph.model({PROPERTY: json.dumps(about, separators=(",", ":"))}, ("r1quant", provenance.VERSION))
    small = {
        MODEL: model.SerializeToString(deterministic=True),
        GENAI: _json(genai.config(artifact, sizes, options, MODEL)),
        "config.json": _json(dict(artifact.config)),
    }
    for name, raw in small.items() | artifact.side_files.items():
        atomic.write_bytes(folder / name, raw)
    return OnnxFolder([folder / name for name in (DATA, *small, *artifact.side_files)], dict(weights.inexact))


def _graph(artifact: Artifact, arch: Architecture, options: OnnxOptions) -> tuple[Graph, Weights, Dimensions]:
    reason = unsupported(arch)
    if reason is not None:
        raise RecipeError(f"{artifact.source}: {reason}", "choose another format")
    sizes = Dimensions.of(artifact.config)
    _check(artifact, arch)
    graph = Graph(DATA)
    weights = Weights(graph, artifact, options)
    kind = Contrib if options.style == "matmulnbits" else Standard
    build(graph, weights, kind(graph, weights, sizes), arch, sizes)
    return graph, weights, sizes


def _check(artifact: Artifact, arch: Architecture) -> None:
    """Every tensor of the architecture is there, in its shape. Biases may be missing, and a tied head."""
    again = "download the model again"
    shapes = arch.shapes(artifact.config)
    for name in artifact.tensors:
        if name not in shapes and not name.endswith(arch.tensors.ignored):
            raise CheckpointError(f"tensor {name} is not one of this architecture", "it would be lost in ONNX")
    for name, shape in shapes.items():
        spec = artifact.tensors.get(name)
        if spec is None and not name.endswith(".bias") and name != arch.tensors.head:
            raise CheckpointError(f"{artifact.source}: tensor {name} is missing", again)
        if spec is not None and tuple(spec.shape) != shape:
            raise CheckpointError(f"{name} is {list(spec.shape)}, but config.json implies {list(shape)}", again)


def _json(content: object) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()

"""From what a user names to an Artifact: float or quantized safetensors, a GGUF file, an ONNX folder."""

from __future__ import annotations

from pathlib import Path

from r1quant.artifact import Artifact
from r1quant.formats import table
from r1quant.sources import open_model

ONNX_FILE = "model.onnx"


def open_artifact(model: str | Path) -> Artifact:
    """Raises CheckpointError where it is unknown, damaged, or in a form that is not read."""
    path = Path(model)
    try:
        is_onnx = path.name == ONNX_FILE or (path / ONNX_FILE).is_file()
        is_gguf = path.suffix.lower() == ".gguf" and path.is_file()
    except (OSError, ValueError):
        is_onnx = is_gguf = False
    if is_onnx:
        from r1quant.formats.onnx.read import open_onnx

        return open_onnx(path)
    if is_gguf:
        from r1quant.formats.gguf.read import open_gguf_artifact

        return open_gguf_artifact(path)
    return table.artifact(open_model(model))

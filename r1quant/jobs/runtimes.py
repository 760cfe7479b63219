"""The runtime that an artifact's format is made for, with the model in it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from r1quant.archs import architecture_of
from r1quant.artifact import Artifact
from r1quant.errors import RecipeError

BACKENDS = ("torch", "onnxruntime", "llamacpp")
OF_FORMAT = {"onnx": "onnxruntime", "gguf": "llamacpp"}  # else torch


class Runtime(Protocol):
    """A loaded model."""

    def logits(self, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """int64 [n] -> float32 [n, vocabulary]."""


def backend_of(artifact: Artifact, wanted: str) -> str:
    """The backend that runs an artifact; `auto` is the one that its format is made for.

    Raises RecipeError for a backend that is not there, or cannot run this format.
    """
    if wanted not in ("auto", *BACKENDS):
        raise RecipeError(f"backend {wanted!r} is not supported", f"choose from auto, {', '.join(BACKENDS)}")
    own = OF_FORMAT.get(artifact.format, "torch")
    if wanted not in ("auto", "torch", own):
        hint = f"export it first: r1quant export {artifact.source} --to {'onnx' if wanted == 'onnxruntime' else 'gguf'}"
        raise RecipeError(f"{wanted} does not run {artifact.format}", hint)
    return own if wanted == "auto" else wanted


def open_runtime(artifact: Artifact, count: int) -> tuple[str, Runtime]:
    """The runtime's name and the model, ready for texts of `count` tokens. Raises MissingDependency."""
    if artifact.format == "onnx":
        from r1quant.backends.onnxruntime import OnnxRuntime

        return "onnxruntime", OnnxRuntime(artifact.folder)
    if artifact.format == "gguf":
        from r1quant.backends.llamacpp import LlamaCpp

        return "llama.cpp", LlamaCpp(_file(artifact), count)
    from r1quant.backends.torch import TorchModel

    return "torch", TorchModel(artifact, architecture_of(artifact.config))


def _file(artifact: Artifact) -> Path:
    path = Path(artifact.source)
    return path if path.is_file() else artifact.folder / path

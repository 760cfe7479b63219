"""From an artifact to a runtime with the model in it: which backend serves which format, and how it is opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from r1quant.arch.tables import architecture_of
from r1quant.backends import Runtime
from r1quant.checkpoint.artifact import Artifact
from r1quant.checkpoint.tokenizer import Tokenizer
from r1quant.errors import RecipeError
from r1quant.extras import need
from r1quant.jobs.setup import BACKENDS, SERVER, Setup

OF_FORMAT = {"onnx": "onnxruntime", "gguf": "llamacpp"}  # else torch
EXTRA_OF = {"onnxruntime": "onnxruntime", "llamacpp": "llamacpp", SERVER: "server"}


def backend_of(artifact: Artifact, wanted: str) -> str:
    """The backend that runs an artifact; `auto` is the one that its format is made for.

    Raises RecipeError for a backend that is not there, or cannot run this format.
    """
    name = wanted.partition(":")[0]
    if name not in ("auto", *BACKENDS):
        raise RecipeError(f"backend {wanted!r} is not supported", f"choose from auto, {', '.join(BACKENDS)}")
    if name == "mock":
        from r1quant.backends.mock import Truth

        Truth.of(wanted)
    if name in (SERVER, "mock"):
        return name
    own = OF_FORMAT.get(artifact.format, "torch")
    if name not in ("auto", "torch", own):
        hint = f"export it first: r1quant export {artifact.source} --to {'onnx' if name == 'onnxruntime' else 'gguf'}"
        raise RecipeError(f"{name} does not run {artifact.format}", hint)
    return own if name == "auto" else name


def installed(backend: str) -> None:
    """Raises MissingDependency if the package of a backend is not there, without loading it."""
    if backend in EXTRA_OF:
        need(EXTRA_OF[backend])


def open_runtime(
    artifact: Artifact,
    context: int,
    setup: Setup,
    answers: Mapping[str, str] | None = None,
    tokenizer: Tokenizer | None = None,
    note: Callable[[str], None] = lambda line: None,
) -> Runtime:
    """The model, ready for texts of `context` tokens.

    answers are what a mock knows; the tokenizer turns tokens to text for servers that want text; note is told of
    servers that fail.

    Raises RecipeError, MissingDependency if the backend's package is not installed, and what the backend raises.
    """
    name = backend_of(artifact, setup.backend)
    if name == SERVER:
        from r1quant.backends.openai import OpenAI

        return OpenAI(
            setup.base_urls,
            setup.served,
            concurrency=setup.concurrency,
            patience_s=setup.patience,
            text_of=tokenizer.decode if tokenizer else None,
            bos=tokenizer.bos_id if tokenizer else None,
            note=note,
        )
    if name == "mock":
        from r1quant.backends.mock import Mock

        return Mock(setup.backend, answers or {}, int(artifact.config["vocab_size"]))
    if name in ("onnxruntime", "llamacpp") and setup.device not in ("auto", "cpu"):
        raise RecipeError(
            f"{name} is run on the processor, not on {setup.device}", "leave out --device, or use a server"
        )
    if name == "onnxruntime":
        from r1quant.backends.onnxruntime import OnnxRuntime

        return OnnxRuntime(artifact.folder)
    if name == "llamacpp":
        from r1quant.backends.llamacpp import LlamaCpp

        return LlamaCpp(file_of(artifact), context)
    from r1quant.backends.torch import TorchModel
    from r1quant.engine import forward

    device = forward.pick_device(setup.device)
    dtype = forward.pick_dtype(setup.dtype, device)
    return TorchModel(artifact, architecture_of(artifact.config), device, dtype, setup.slots)


def file_of(artifact: Artifact) -> Path:
    """The one file of an artifact that is a file, such as a GGUF."""
    path = Path(artifact.source)
    return path if path.is_file() else artifact.folder / path

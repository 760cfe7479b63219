"""From an artifact to a runtime with the model in it: which backend serves which format, and how it is opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from r1quant.archs import architecture_of
from r1quant.artifact import Artifact
from r1quant.backends import Runtime
from r1quant.errors import RecipeError
from r1quant.extras import need
from r1quant.tokenizer import Tokenizer

LOCAL = ("torch", "onnxruntime", "llamacpp")
BACKENDS = (*LOCAL, "openai", "mock")
OF_FORMAT = {"onnx": "onnxruntime", "gguf": "llamacpp"}  # else torch
EXTRA_OF = {"onnxruntime": "onnxruntime", "llamacpp": "llamacpp", "openai": "server"}
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Server:
    """An OpenAI-compatible server, or several that serve the same model.

    urls         such as http://localhost:8000/v1
    model        the name it is served under; the first that the server lists where it is None
    concurrency  requests under way at a time, over all urls
    patience     seconds to wait for servers of which none answers
    """

    urls: tuple[str, ...]
    model: str | None = None
    concurrency: int = 8
    patience: float = 300.0


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
    if name in ("openai", "mock"):
        return name
    own = OF_FORMAT.get(artifact.format, "torch")
    if name not in ("auto", "torch", own):
        hint = f"export it first: r1quant export {artifact.source} --to {'onnx' if name == 'onnxruntime' else 'gguf'}"
        raise RecipeError(f"{name} does not run {artifact.format}", hint)
    return own if name == "auto" else name


def installed(backend: str) -> None:
    """Raises MissingDependency where the package of a backend is not there, without loading it."""
    if backend in EXTRA_OF:
        need(EXTRA_OF[backend])


def open_runtime(
    artifact: Artifact,
    context: int,
    backend: str = "auto",
    device: str = "auto",
    dtype: str = "float32",
    slots: int | None = None,
    server: Server | None = None,
    answers: Mapping[str, str] | None = None,
    tokenizer: Tokenizer | None = None,
    note: Callable[[str], None] = lambda line: None,
) -> Runtime:
    """The model, ready for texts of `context` tokens.

    device, dtype, slots are torch's: where and how it computes, and how many texts it completes at a time. server is
    where the backend openai finds it; the tokenizer turns tokens to text for servers that want text;
    answers are what a mock knows; note is told of servers that fail.

    Raises RecipeError, MissingDependency where the backend's package is not installed, and what the backend raises.
    """
    name = backend_of(artifact, backend)
    if name == "openai":
        if server is None or not server.urls:
            raise RecipeError("the backend openai needs a server", "name it with --base-url http://host:port/v1")
        from r1quant.backends.openai import OpenAI

        return OpenAI(
            server.urls,
            server.model,
            concurrency=server.concurrency,
            patience_s=server.patience,
            text_of=tokenizer.decode if tokenizer else None,
            bos=tokenizer.bos_id if tokenizer else None,
            note=note,
        )
    if name == "mock":
        from r1quant.backends.mock import Mock

        return Mock(backend, answers or {}, int(artifact.config["vocab_size"]))
    if name in ("onnxruntime", "llamacpp") and device not in ("auto", "cpu"):
        raise RecipeError(f"{name} is run on the processor, not on {device}", "leave out --device, or use a server")
    if name == "onnxruntime":
        from r1quant.backends.onnxruntime import OnnxRuntime

        return OnnxRuntime(artifact.folder)
    if name == "llamacpp":
        from r1quant.backends.llamacpp import LlamaCpp

        return LlamaCpp(file_of(artifact), context)
    from r1quant import forward
    from r1quant.backends.torch import TorchModel

    if dtype not in DTYPES:
        raise RecipeError(f"dtype {dtype!r} is not supported", f"choose from {', '.join(DTYPES)}")
    place = forward.pick_device(device)
    return TorchModel(artifact, architecture_of(artifact.config), place, forward.DTYPES[dtype], slots)


def file_of(artifact: Artifact) -> Path:
    """The one file of an artifact that is a file, such as a GGUF."""
    path = Path(artifact.source)
    return path if path.is_file() else artifact.folder / path

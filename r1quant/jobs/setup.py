"""How a model is run: by which backend, on which device, at which servers. It opens nothing."""

from __future__ import annotations

from dataclasses import dataclass

from r1quant.core.options import OneOf, Text, Within, check, option
from r1quant.errors import RecipeError

LOCAL = ("torch", "onnxruntime", "llamacpp")
SERVER = "openai"
BACKENDS = (*LOCAL, SERVER, "mock")
DTYPES = ("float32", "bfloat16", "float16")
RUNTIME, DEVICE = "Backends and servers", "Device"
BACKEND = Text(f"choose from auto, {', '.join(BACKENDS)}", suggestions=("auto", *BACKENDS))
ADDRESS = Text("give an address such as http://localhost:8000/v1")


@dataclass(frozen=True)
class Setup:
    """How a model is run. slots: the most texts that torch completes at a time; memory decides if it is None."""

    backend: str = option(
        "auto",
        RUNTIME,
        "What runs the model: auto takes what its format is made for, torch computes from its weights, onnxruntime and "
        "llamacpp are made for a format each, openai asks the servers of --base-url, and mock invents its answers.",
        BACKEND,
    )
    device: str = option("auto", DEVICE, "Where torch computes: cpu, cuda, cuda:1, ... or auto.", Text())
    dtype: str = option("auto", DEVICE, "Precision in which torch computes.", OneOf(("auto", *DTYPES)))
    slots: int | None = None
    base_urls: tuple[str, ...] = option(
        (),
        RUNTIME,
        "Address of an OpenAI-compatible server that runs the model: http://localhost:8000/v1. Repeatable.",
        ADDRESS,
        flag="--base-url",
    )
    served: str | None = option(
        None,
        RUNTIME,
        "Name of the model on its server.",
        Text(),
        flag="--served-model",
        shown="the first that the server lists",
    )
    concurrency: int = option(8, RUNTIME, "Requests under way at a time, over all servers.", Within(1))
    patience: float = option(
        300.0, RUNTIME, "How long to wait while no server answers, in seconds.", Within(unit="seconds")
    )

    def __post_init__(self) -> None:
        """Raises RecipeError naming the first value that is not possible."""
        check(self)
        if bool(self.base_urls) != (self.backend == SERVER):
            raise RecipeError("--base-url and the backend openai belong together", "give both, or leave out --base-url")

"""The packages that r1quant can do without: what each is for, and the line that installs it. It loads none of them."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass

from r1quant.errors import MissingDependency


@dataclass(frozen=True)
class Extra:
    """package: the distribution; module: what is imported; purpose: what it does, after "it"."""

    package: str
    module: str
    purpose: str


# By the names that pyproject.toml gives them: those in the brackets of r1quant[...].
EXTRAS: Mapping[str, Extra] = {
    "onnxruntime": Extra("onnxruntime", "onnxruntime", "runs ONNX exports"),
    "gpu": Extra("onnxruntime-gpu", "onnxruntime", "runs ONNX exports on a GPU"),
    "llamacpp": Extra("llama-cpp-python", "llama_cpp", "runs GGUF files and makes K-quants"),
    "server": Extra("openai", "openai", "asks servers"),
    "tasks": Extra("lm-eval", "lm_eval", "runs tasks"),
    "datasets": Extra("datasets", "datasets", "reads datasets of the Hub"),
    "report": Extra("matplotlib", "matplotlib", "draws the charts of reports"),
}


def missing(name: str, reason: str | None = None) -> MissingDependency:
    """The error for an extra that is not there, or cannot be loaded for the reason."""
    extra = EXTRAS[name]
    said = reason or f"{extra.package} is not installed: it {extra.purpose}"
    return MissingDependency(said, f"pip install 'r1quant[{name}]'")


def need(name: str) -> None:
    """Raises MissingDependency if an extra is not there, without loading it."""
    if importlib.util.find_spec(EXTRAS[name].module) is None:
        raise missing(name)

"""The table of contents: methods, formats and presets with their limits, as plain data. No heavy imports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class MethodCost:
    """What it takes to round a weight [N, K], for the planner.

    per_weight   floating-point operations for each of the N K weights
    per_product  floating-point operations for each of the N K^2 products with a Hessian
    nbytes       bytes of memory for each weight, in which the weight itself and its codes are counted
    """

    per_weight: float
    per_product: float
    nbytes: int


@dataclass(frozen=True)
class Method:
    """What has to be known of a rounding method before a weight is read.

    summary     for people
    calibrated  whether it rounds by statistics of calibration text
    cost        for the planner
    engine      the function that rounds, as r1quant.engine.methods.method.Quantize says; or the name of the module in
                r1quant/engine/methods whose `quantize` it is, which is imported when the first weight is rounded
    feedback    whether errors that are made move the weights that are still to be rounded. If so, act-order and damping
                apply to it and are told in the GPTQ metadata, and what a linear will lose is found out by a trial
    factors     how it scales input channels before it rounds, such as awq; None leaves that to the recipe
    usual       whether it is the one that names of results do not mention
    """

    summary: str
    calibrated: bool
    cost: MethodCost
    engine: str | Callable[..., object]
    feedback: bool = False
    factors: str | None = None
    usual: bool = False


@dataclass(frozen=True)
class Format:
    """zero_min: the smallest zero point it can store; quantized: whether `quantize` writes it, or only `export`; grids:
    the kinds of grids whose integers it holds; tables: which of embedding and head it holds as integers; tied_tables:
    whether it does so too if they are one tensor."""

    zero_min: int
    quantized: bool
    summary: str
    grids: tuple[str, ...] = ("uniform",)
    tables: tuple[str, ...] = ()
    tied_tables: bool = False


METHODS: dict[str, Method] = {
    "gptq": Method(
        "second-order rounding with calibration text", True, MethodCost(0, 4, 20), "gptq", feedback=True, usual=True
    ),
    "awq": Method(
        "input channels scaled by what they carry, then round to nearest", True, MethodCost(0, 4, 20), "rtn",
        factors="awq",
    ),
    "rtn": Method("round to nearest, no calibration, fastest", False, MethodCost(3e4, 0, 12), "rtn"),
}  # fmt: skip


def register_method(name: str, method: Method) -> None:
    """Adds a method for the rest of this process. Raises ValueError if the name is taken."""
    if name in METHODS:
        raise ValueError(f"there is a method {name} already")
    METHODS[name] = method


TABLES = ("embedding", "head")  # matrices outside the layers, one row a token
FLOATS = ("safetensors",)  # formats that hold what any quantized linear stands for, without its integers
FORMATS: Mapping[str, Format] = {
    "gptq": Format(1, True, "GPTQ safetensors, version 1: vLLM, SGLang, transformers", tables=("head",)),
    "gptq-v2": Format(
        0, True, "GPTQ safetensors, version 2, which holds a zero point of 0: transformers, gptqmodel", tables=("head",)
    ),
    "awq": Format(0, True, "AWQ gemm safetensors, 4 bits: vLLM, SGLang, transformers"),
    "compressed-tensors": Format(0, True, "pack-quantized safetensors: vLLM, SGLang, transformers", tables=TABLES),
    "compressed-tensors-int": Format(0, True, "int-quantized safetensors, 8 bits in int8: transformers", tables=TABLES),
    "safetensors": Format(0, False, "floats under Hugging Face's names: every program", grids=()),
    "onnx": Format(
        0, False, "one folder for onnxruntime and onnxruntime-genai", ("uniform", "blocks"), TABLES, tied_tables=True
    ),
    "gguf": Format(
        0, True, "one file of a --type such as Q4_K_M: llama.cpp and Ollama", ("uniform", "blocks"), TABLES, True
    ),
}


def written(grid: str) -> list[str]:
    """The formats in which `quantize` writes a kind of grid: those that hold its integers, or floats if none does."""
    return [name for name, format in FORMATS.items() if format.quantized and grid in format.grids] or list(FLOATS)


_SECOND_ORDER: Mapping[str, Any] = {"method": "gptq", "damping": 0.05, "corrected": True}
DEFAULT_PRESET = "balanced"  # if no method is named
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "fast": {**_SECOND_ORDER, "corrected_share": 0.25},
    "balanced": {**_SECOND_ORDER, "corrected_share": 0.5, "guided": True, "guided_share": 0.25},
    "best": {**_SECOND_ORDER, "guided": True, "continued": 1.0},
}

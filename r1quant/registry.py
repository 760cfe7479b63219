"""The table of contents: methods, formats and presets with their limits, as plain data. No heavy imports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Method:
    """calibrated: whether it needs calibration text."""

    calibrated: bool
    summary: str


@dataclass(frozen=True)
class Format:
    """zero_min: the smallest zero point it can store; quantized: whether `quantize` writes it, or only `export`."""

    zero_min: int
    quantized: bool
    summary: str


METHODS: Mapping[str, Method] = {
    "gptq": Method(True, "second-order rounding with calibration text"),
    "awq": Method(True, "input channels scaled by what they carry, then round to nearest"),
    "rtn": Method(False, "round to nearest, no calibration, fastest"),
}

FORMATS: Mapping[str, Format] = {
    "gptq": Format(1, True, "GPTQ safetensors, version 1: vLLM, SGLang, transformers"),
    "gptq-v2": Format(0, True, "GPTQ safetensors, version 2, which holds a zero point of 0: transformers, gptqmodel"),
    "awq": Format(0, True, "AWQ gemm safetensors, 4 bits: vLLM, SGLang, transformers"),
    "compressed-tensors": Format(0, True, "pack-quantized safetensors: vLLM, SGLang, transformers"),
    "compressed-tensors-int": Format(0, True, "int-quantized safetensors, 8 bits in int8: transformers"),
    "safetensors": Format(0, False, "floats under Hugging Face's names: every program"),
    "onnx": Format(0, False, "one folder for onnxruntime and onnxruntime-genai"),
    "gguf": Format(0, False, "llama.cpp and Ollama"),
}

_SECOND_ORDER: Mapping[str, Any] = {"method": "gptq", "damping": 0.05, "corrected": True}
DEFAULT_PRESET = "balanced"  # where no method is named
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "fast": {**_SECOND_ORDER, "corrected_share": 0.25},
    "balanced": {**_SECOND_ORDER, "corrected_share": 0.5, "guided": True, "guided_share": 0.25},
    "best": {**_SECOND_ORDER, "guided": True, "continued": 1.0},
}

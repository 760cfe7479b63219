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
    """bits and group_sizes it can hold; zero_min: the smallest zero point it can store."""

    bits: tuple[int, ...]
    group_sizes: tuple[int, ...]
    zero_min: int
    summary: str


METHODS: Mapping[str, Method] = {
    "gptq": Method(True, "second-order rounding with calibration text"),
    "rtn": Method(False, "round to nearest, no calibration, fastest"),
}

FORMATS: Mapping[str, Format] = {
    "gptq": Format((2, 3, 4, 8), (16, 32, 64, 128, -1), 1, "GPTQ v1 safetensors: vLLM, SGLang, transformers"),
}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "w4a16": {"method": "gptq", "bits": 4, "group_size": 128, "symmetric": True},
    "w8a16": {"method": "gptq", "bits": 8, "group_size": 128, "symmetric": True},
    "fast": {"method": "rtn", "bits": 4, "group_size": 128, "symmetric": True},
}

"""doctor: what this machine has of all that r1quant can use, and what is peculiar about a model."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path
from typing import Any

from r1quant.artifact import has_chat_template
from r1quant.extras import EXTRAS, missing
from r1quant.provenance import processors, version
from r1quant.sources import open_model
from r1quant.yarn import yarn

REQUIRED = ("torch", "transformers", "safetensors", "tokenizers", "onnx", "gguf", "numba", "numpy")
EXTENSIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def doctor(model: str | Path | None = None) -> dict[str, Any]:
    """Findings by part; `advice` is what to do, one line each. Reads headers only."""
    packages = {name: version(name) or None for name in (*REQUIRED, *(extra.package for extra in EXTRAS.values()))}
    machine = _machine()
    useless = "gpu" if not machine["gpus"] else "onnxruntime" if packages["onnxruntime-gpu"] else ""
    problems = [missing(name) for name, extra in EXTRAS.items() if not packages[extra.package] and name != useless]
    advice = [f"{problem.message}; {problem.hint}" for problem in problems]
    found: dict[str, Any] = {"packages": packages, "machine": machine}
    if model is not None:
        found["model"], more = _model(model)
        advice += more
    return found | {"advice": advice}


def _machine() -> dict[str, Any]:
    import torch

    info = Path("/proc/cpuinfo")
    flags = set(info.read_text("utf-8").split()) if info.is_file() else set()
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else None
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": processors(),
        "memory_bytes": pages,
        "free_disk_bytes": shutil.disk_usage(".").free,
        "instructions": [name for name in EXTENSIONS if name in flags],
        "gpus": gpus,
    }


def _model(model: str | Path) -> tuple[dict[str, Any], list[str]]:
    checkpoint, advice = open_model(model), []
    stretched = yarn(checkpoint.config)
    if stretched is not None and stretched.disagree:
        advice.append(stretched.explanation)
    if not has_chat_template(checkpoint.carried):
        advice.append("the model has no chat template: chat prompts must be formatted by hand")
    if "tokenizer.json" not in checkpoint.carried:
        advice.append("the model has no tokenizer.json, which calibration, measuring and GGUF need")
    return {
        "name": checkpoint.source,
        "model_type": checkpoint.config.get("model_type"),
        "yarn": None if stretched is None else stretched.as_dict(),
    }, advice

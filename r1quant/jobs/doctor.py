"""doctor: what this machine has of all that r1quant can use, and what is peculiar about a model.

Packages are asked for their versions, and the backends' own are really imported, since what is installed may not load.
"""

from __future__ import annotations

import importlib
import os
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from r1quant.arch.yarn import yarn
from r1quant.checkpoint.artifact import has_chat_template
from r1quant.checkpoint.resolve import open_model
from r1quant.core.platforms import platform_line
from r1quant.extras import EXTRAS, missing
from r1quant.hardware.detect import gpus, host
from r1quant.storage.cache import cache_folder
from r1quant.storage.provenance import version

REQUIRED = ("torch", "transformers", "safetensors", "tokenizers", "onnx", "gguf", "numba", "numpy")
EXTENSIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
# By the name that --backend takes: the package that runs it, and the extra that brings it, if it is one.
BACKENDS: Mapping[str, tuple[str, str | None]] = {
    "torch": ("torch", None),
    "onnxruntime": ("onnxruntime", "onnxruntime"),
    "llamacpp": ("llama_cpp", "llamacpp"),
    "openai": ("openai", "server"),
}
HEED = ("R1QUANT_", "HF_", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "XDG_CACHE_HOME", "OPENAI_")
SECRET = ("TOKEN", "KEY", "SECRET", "PASSWORD")


def doctor(model: str | Path | None = None) -> dict[str, Any]:
    """Findings by part; `advice` is what to do, one line each. Reads headers only.

    broken: what r1quant cannot do without and does not have, or cannot load.
    """
    packages = {name: version(name) or None for name in (*REQUIRED, *(extra.package for extra in EXTRAS.values()))}
    backends = {name: _tried(module) for name, (module, _) in BACKENDS.items()}
    machine = _machine()
    useless = "gpu" if not machine["gpus"] else "onnxruntime" if packages["onnxruntime-gpu"] else ""
    absent = [name for name, extra in EXTRAS.items() if not packages[extra.package] and name != useless]
    problems = [missing(name) for name in absent]
    advice = [f"{problem.message}; {problem.hint}" for problem in problems]
    advice += [
        f"{name} is installed, but does not load: {found['reason']}; pip install --force-reinstall 'r1quant[{extra}]'"
        for name, found in backends.items()
        if (extra := BACKENDS[name][1]) and not found["works"] and packages[EXTRAS[extra].package]
    ]
    broken = [f"{name} is not installed" for name in REQUIRED if packages[name] is None]
    broken += [f"torch does not load: {backends['torch']['reason']}"] if not backends["torch"]["works"] else []
    advice += [f"{line}; pip install --force-reinstall r1quant" for line in broken]
    found: dict[str, Any] = {
        "packages": packages,
        "backends": backends,
        "extras": {name: {"installed": name not in absent, "gives": e.purpose} for name, e in EXTRAS.items()},
        "machine": machine,
        "environment": {name: _shown(name) for name in sorted(os.environ) if name.startswith(HEED)},
        "caches": _caches(),
        "broken": broken,
    }
    if model is not None:
        found["model"], more = _model(model)
        advice += more
    return found | {"advice": advice}


def _tried(module: str) -> dict[str, Any]:
    """Whether a package can be imported, and why not."""
    try:
        loaded = importlib.import_module(module)
    except Exception as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return {"works": False, "version": None, "reason": said[:200]}
    return {"works": True, "version": getattr(loaded, "__version__", None), "reason": None}


def _machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text("utf-8").split()) if info.is_file() else set()
    here = host()
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "platform": platform_line(),
        "processor": here.processor,
        "cores": here.cores,
        "memory_bytes": here.memory_bytes,
        "free_disk_bytes": shutil.disk_usage(".").free,
        "instructions": [name for name in EXTENSIONS if name in flags],
        "gpus": [vars(gpu) for gpu in gpus()],
    }


def _shown(name: str) -> str:
    """The value of a variable, but of none that may be secret."""
    value = os.environ[name]
    return "set" if "@" in value or any(word in name.upper() for word in SECRET) else value


def _caches() -> dict[str, Any]:
    """Where things are kept, and how much is there: answers and sensitivity passes; models of the Hub."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    places = {"r1quant": cache_folder(), "hub": Path(os.environ.get("HF_HUB_CACHE") or home / "hub")}
    return {name: {"path": str(path), "bytes": _size(path)} for name, path in places.items()}


def _size(folder: Path) -> int:
    """Of all files, links not followed."""
    return sum(
        (Path(root) / name).lstat().st_size
        for root, _, names in os.walk(folder)
        for name in names
        if not (Path(root) / name).is_symlink()
    )


def _model(model: str | Path) -> tuple[dict[str, Any], list[str]]:
    checkpoint, advice = open_model(model), []
    stretched = yarn(checkpoint.config)
    if stretched is not None and stretched.disagree:
        advice.append(stretched.explanation)
    if not has_chat_template(checkpoint.side_files):
        advice.append("the model has no chat template: chat prompts must be formatted by hand")
    if "tokenizer.json" not in checkpoint.side_files:
        advice.append("the model has no tokenizer.json, which calibration, measuring and GGUF need")
    return {
        "name": checkpoint.source,
        "model_type": checkpoint.config.get("model_type"),
        "yarn": None if stretched is None else stretched.as_dict(),
    }, advice

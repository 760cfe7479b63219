"""doctor: what this machine has of all that r1quant can use, and what is peculiar about a model.

Packages are asked for their versions, and the backends' own are really imported, since what is installed may not load.
"""

from __future__ import annotations

import importlib
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from r1quant.arch.yarn import yarn
from r1quant.checkpoint.artifact import has_chat_template
from r1quant.checkpoint.resolve import open_model
from r1quant.checkpoint.safetensors import Checkpoint
from r1quant.core.json import JsonObject
from r1quant.core.platforms import platform_line
from r1quant.extras import EXTRAS, missing
from r1quant.hardware.detect import Gpu, gpus, host
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


@dataclass(frozen=True)
class BackendState:
    """Whether the package of a backend can be imported; `reason` says why not."""

    works: bool
    version: str | None
    reason: str | None


@dataclass(frozen=True)
class ExtraState:
    """Whether an extra is installed, and what it gives."""

    installed: bool
    gives: str


@dataclass(frozen=True)
class MachineState:
    """This machine.

    platform         how far this system is tested
    memory_bytes     that this process may fill
    free_disk_bytes  of the disk of the working directory
    instructions     of EXTENSIONS, those that the processor has
    """

    python: str
    system: str
    platform: str
    processor: str
    cores: int
    memory_bytes: int
    free_disk_bytes: int
    instructions: tuple[str, ...]
    gpus: tuple[Gpu, ...]


@dataclass(frozen=True)
class CacheState:
    """A folder that may be deleted at any time."""

    path: str
    bytes: int


@dataclass(frozen=True)
class ModelState:
    """What is peculiar about a model."""

    name: str
    model_type: str | None
    yarn: JsonObject | None


@dataclass(frozen=True)
class Diagnosis:
    """What this machine has.

    packages     versions by name; None for one that is not installed
    environment  the variables that r1quant and its libraries heed, without secrets
    broken       what r1quant cannot do without and does not have, or cannot load
    advice       what to do, one line each
    """

    packages: Mapping[str, str | None]
    backends: Mapping[str, BackendState]
    extras: Mapping[str, ExtraState]
    machine: MachineState
    environment: Mapping[str, str]
    caches: Mapping[str, CacheState]
    broken: tuple[str, ...]
    advice: tuple[str, ...]
    model: ModelState | None = None

    def as_dict(self) -> JsonObject:
        return {key: value for key, value in asdict(self).items() if value is not None}


def doctor(model: str | Path | None = None) -> JsonObject:
    """As `diagnose`, for JSON."""
    return diagnose(model).as_dict()


def diagnose(model: str | Path | None = None) -> Diagnosis:
    """Looks at this machine and, if there is one, at the headers of a model. Raises CheckpointError as open_model."""
    packages = {name: version(name) or None for name in (*REQUIRED, *(extra.package for extra in EXTRAS.values()))}
    backends = {name: _backend(module) for name, (module, _) in BACKENDS.items()}
    machine = _machine()
    useless = "gpu" if not machine.gpus else "onnxruntime" if packages["onnxruntime-gpu"] else ""
    absent = [name for name, extra in EXTRAS.items() if not packages[extra.package] and name != useless]
    broken = [f"{name} is not installed" for name in REQUIRED if packages[name] is None]
    broken += [] if backends["torch"].works else [f"torch does not load: {backends['torch'].reason}"]
    advice = [f"{problem.message}; {problem.hint}" for problem in map(missing, absent)]
    advice += [
        f"{name} is installed, but does not load: {state.reason}; pip install --force-reinstall 'r1quant[{extra}]'"
        for name, state in backends.items()
        if (extra := BACKENDS[name][1]) and not state.works and packages[EXTRAS[extra].package]
    ]
    advice += [f"{line}; pip install --force-reinstall r1quant" for line in broken]
    checkpoint = None if model is None else open_model(model)
    return Diagnosis(
        packages,
        backends,
        {name: ExtraState(name not in absent, extra.purpose) for name, extra in EXTRAS.items()},
        machine,
        {name: _shown(name) for name in sorted(os.environ) if name.startswith(HEED)},
        _caches(),
        tuple(broken),
        (*advice, *(_advice(checkpoint) if checkpoint else ())),
        _model(checkpoint) if checkpoint else None,
    )


def _backend(module: str) -> BackendState:
    try:
        loaded = importlib.import_module(module)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return BackendState(False, None, reason[:200])
    return BackendState(True, getattr(loaded, "__version__", None), None)


def _machine() -> MachineState:
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text("utf-8").split()) if info.is_file() else set()
    here = host()
    return MachineState(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        platform=platform_line(),
        processor=here.processor,
        cores=here.cores,
        memory_bytes=here.memory_bytes,
        free_disk_bytes=shutil.disk_usage(".").free,
        instructions=tuple(name for name in EXTENSIONS if name in flags),
        gpus=tuple(gpus()),
    )


def _shown(name: str) -> str:
    """The value of a variable, but of none that may be secret."""
    value = os.environ[name]
    return "set" if "@" in value or any(word in name.upper() for word in SECRET) else value


def _caches() -> dict[str, CacheState]:
    """r1quant's own, of answers and sensitivity passes, and that of models of the Hub."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    places = {"r1quant": cache_folder(), "hub": Path(os.environ.get("HF_HUB_CACHE") or home / "hub")}
    return {name: CacheState(str(path), _size(path)) for name, path in places.items()}


def _size(folder: Path) -> int:
    """Of all files, links not followed."""
    return sum(
        (Path(root) / name).lstat().st_size
        for root, _, names in os.walk(folder)
        for name in names
        if not (Path(root) / name).is_symlink()
    )


def _model(checkpoint: Checkpoint) -> ModelState:
    stretched, kind = yarn(checkpoint.config), checkpoint.config.get("model_type")
    return ModelState(checkpoint.source, kind, None if stretched is None else stretched.as_dict())


def _advice(checkpoint: Checkpoint) -> Iterator[str]:
    """On what is peculiar about a model."""
    stretched = yarn(checkpoint.config)
    if stretched is not None and stretched.disagree:
        yield stretched.explanation
    if not has_chat_template(checkpoint.side_files):
        yield "the model has no chat template: chat prompts must be formatted by hand"
    if "tokenizer.json" not in checkpoint.side_files:
        yield "the model has no tokenizer.json, which calibration, measuring and GGUF need"

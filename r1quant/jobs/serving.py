"""How an artifact is used once it is written: which runtimes load it, and the commands that measure and serve it.

The lines are those of the model card. It does not know who shows them.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from r1quant.arch.tables import architecture_of
from r1quant.checkpoint.artifact import Artifact, generation_config
from r1quant.checkpoint.tokenizer import Tokenizer
from r1quant.core.json import JsonObject
from r1quant.core.thinking import OPENING
from r1quant.errors import CheckpointError
from r1quant.jobs.artifacts import open_artifact, source_of
from r1quant.planning import preflight
from r1quant.publishing.usage import Block, Model, Usage, usages

R1_TURN = "<｜Assistant｜>"
SAMPLING = ("temperature", "top_p", "top_k")


@dataclass(frozen=True)
class Written:
    """An artifact on this machine, as `usage.Loadable`: `name` is its path from the current folder."""

    name: str
    format: str
    runtimes: tuple[str, ...]
    modelfile: str


def next_steps(path: Path) -> list[Usage]:
    """What can be done with an artifact that was just written: first the command of ours that comes next, then how each
    runtime that loads it serves it.

    path  its folder, or its GGUF file

    Raises CheckpointError if it cannot be read.
    """
    artifact = open_artifact(path)
    file = Path(artifact.source) if artifact.source.endswith(".gguf") else path
    shown = _from_here(file)
    written = Written(shown, artifact.format, runtimes_of(artifact, file), modelfile_of(file))
    name = path.resolve().name.removesuffix(".gguf")
    return [*_own_step(artifact, shown), *usages(written, model_of(artifact, name, None))]


def as_dict(step: Usage) -> JsonObject:
    """A step for other programs: `for` is verify, quantize or a runtime; `commands` are lines for a shell, `python` the
    code if the runtime is a library."""
    shell = [line for block in step.blocks if block.language == "sh" for line in block.lines]
    code = [line for block in step.blocks if block.language == "python" for line in block.lines]
    return {"for": step.runtime, "commands": shell, "python": "\n".join(code) if code else None}


def runtimes_of(artifact: Artifact, path: Path) -> tuple[str, ...]:
    """The runtimes that load an artifact. Some need a file beside the weights."""
    verdicts = preflight.runtimes(architecture_of(artifact.config), artifact.config, artifact.linear_specs)
    lacks = {"Ollama": not modelfile_of(path), "onnxruntime-genai": not (path / "genai_config.json").is_file()}
    able = (verdict.runtime for verdict in verdicts if artifact.format in verdict.loads)
    return tuple(name for name in able if not lacks.get(name, False))


def modelfile_of(path: Path) -> str:
    """The name of the Modelfile of a GGUF file; empty if there is none."""
    beside = (path.with_name(name) for name in ("Modelfile", f"{path.stem}.Modelfile"))
    return next((file.name for file in beside if file.is_file() and path.name in file.read_text("utf-8")), "")


def model_of(artifact: Artifact, name: str, repo: str | None) -> Model:
    """How a model is run, by its tokenizer and its own defaults. Without a tokenizer it is taken for one that answers
    at once."""
    try:
        tokenizer = Tokenizer.from_files(artifact.side_files, artifact.source)
    except CheckpointError:
        tokenizer = None
    return Model(
        repo,
        name,
        reasons=tokenizer is not None and tokenizer.backend.token_to_id(OPENING) is not None,
        r1=tokenizer is not None and R1_TURN in (tokenizer.template or ""),
        context=int(artifact.config.get("max_position_embeddings") or 4096),
        sampling=_sampling(generation_config(artifact.side_files)),
    )


def _sampling(defaults: Mapping[str, object]) -> dict[str, float]:
    numbers = {key: defaults.get(key) for key in SAMPLING}
    return {key: n for key, n in numbers.items() if isinstance(n, int | float) and not isinstance(n, bool)}


def _own_step(artifact: Artifact, shown: str) -> list[Usage]:
    """The command of ours that comes next: quantized models are measured, float checkpoints are quantized."""
    path = shlex.quote(shown)
    if artifact.linear_specs or artifact.format == "gguf":
        return [Usage("verify", (Block("sh", (f"r1quant verify {path}{_baseline(artifact)}",)),))]
    return [Usage("quantize", (Block("sh", (f"r1quant quantize {path}",)),))]


def _baseline(artifact: Artifact) -> str:
    """What verify has to be told if the record does not say what the model was made from."""
    try:
        source_of(artifact)
    except CheckpointError:
        return " --baseline FLOAT_MODEL"
    return ""


def _from_here(path: Path) -> str:
    """The path that a user in the current folder would write."""
    relative = os.path.relpath(path)
    return str(path.absolute()) if relative.startswith("..") else Path(relative).as_posix()

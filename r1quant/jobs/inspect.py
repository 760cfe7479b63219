"""inspect: what a model on disk is, whatever its format, without reading its weights."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

from r1quant.arch.tables import architecture_of, is_tied, linears
from r1quant.arch.yarn import yarn
from r1quant.checkpoint.artifact import CheckpointArtifact, LinearSpec, has_chat_template, quantized
from r1quant.formats.codec import CodecArtifact
from r1quant.jobs.artifacts import open_artifact
from r1quant.jobs.identity import weight_files
from r1quant.planning import preflight
from r1quant.planning.problems import tensor_problems


def inspect(model: str | Path) -> dict[str, Any]:
    """Reads headers and, of quantized models, scales and zero points."""
    artifact = open_artifact(model, partial=True)
    config, arch = artifact.config, architecture_of(artifact.config)
    inner = linears(config, arch)[:-1]  # without the head
    weights = [f"{name}.weight" for name in inner if f"{name}.weight" in artifact.tensors]
    checkpoint = artifact.checkpoint if isinstance(artifact, CodecArtifact) else None
    stored = artifact.checkpoint if isinstance(artifact, CheckpointArtifact) else None
    grids = Counter(describe(form) for form in artifact.linear_specs.values())
    plain = [spec for name, spec in artifact.tensors.items() if quantized(artifact, name) is None]
    stretched = yarn(config)
    return {
        "model": artifact.source,
        "format": artifact.format,
        "architecture": arch.model_type,
        "parameters": sum(math.prod(spec.shape) for spec in artifact.tensors.values()),
        "quantizable_parameters": sum(math.prod(artifact.tensors[name].shape) for name in weights),
        "linears": len(weights),
        "layers": config["num_hidden_layers"],
        "tensors": len(artifact.tensors if checkpoint is None else checkpoint.tensors),
        "dtypes": dict(Counter(spec.dtype for spec in plain)) | dict(grids),
        "bytes": sum(path.stat().st_size for path in weight_files(artifact)),
        "files": len(weight_files(artifact)),
        "missing_bytes": stored.missing_bytes if stored else 0,
        "tied_embeddings": is_tied(config),
        "vocabulary": config.get("vocab_size"),
        "max_positions": config.get("max_position_embeddings"),
        "rope_scaling": config.get("rope_scaling"),
        "yarn": None if stretched is None else stretched.as_dict(),
        "chat_template": has_chat_template(artifact.side_files),
        "quantization": checkpoint.config.get("quantization_config") if checkpoint else (dict(grids) or None),
        "exports": [name for name, reason in preflight.formats(arch, artifact.linear_specs).items() if reason is None]
        if artifact.linear_specs
        else [],
        "problems": [p.message for p in tensor_problems(checkpoint, arch)]
        if checkpoint and not artifact.linear_specs
        else [],
        "notes": [stored.incomplete] if stored and stored.incomplete else [],
    }


def describe(form: LinearSpec) -> str:
    """A grid in a few words."""
    if form.type is not None:
        return form.type
    size = {None: "act-order", -1: "whole rows"}.get(form.group_size, f"groups of {form.group_size}")
    return f"{form.bits} bits, {size}, {'symmetric' if form.symmetric else 'asymmetric'}"

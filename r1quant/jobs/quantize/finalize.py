"""Puts a finished run together as the output folder.

Each file is written whole or not at all, and one that exists is complete, so this too can be interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from r1quant.checkpoint.artifact import PartlyQuantized
from r1quant.core.json import JsonObject
from r1quant.core.qlinear import QuantizedLinear
from r1quant.formats.gguf.modelfile import modelfile
from r1quant.formats.gguf.options import FILE_TYPES, GgufOptions
from r1quant.formats.gguf.write import write
from r1quant.jobs.checkpoint_writer import (
    RECORD,
    Contents,
    record_bytes,
    with_attention_factor,
    with_key,
    write_side_files,
    write_weights,
)
from r1quant.jobs.quantize import layer_files
from r1quant.planning.layout import Layout
from r1quant.planning.plan import Plan
from r1quant.recipe import Recipe
from r1quant.records.quantization import Changed, Quantization
from r1quant.registry import METHODS
from r1quant.storage import atomic, provenance
from r1quant.storage.rundir import RunDir


def build(folder: RunDir, plan: Plan, origin: Quantization, environment: Mapping[str, str]) -> Quantization:
    """Writes everything into folder.output. Returns the record, which states the origin and the environment."""
    out = folder.output
    out.mkdir(exist_ok=True)
    layer_of = {matrix.name: matrix.layer for matrix in (*plan.linears, *plan.tables)}

    def rounded(name: str) -> QuantizedLinear:
        return layer_files.read(folder.layer_file(layer_of[name]), name)

    if isinstance(plan.layout, Layout):
        _write_folder(out, plan, plan.layout, rounded)
    else:
        _write_gguf(out, plan, rounded)
    record = _record(folder, plan, origin, environment)
    atomic.write_bytes(out / RECORD, record_bytes(record.as_dict()))
    return record


def _write_gguf(out: Path, plan: Plan, rounded: Callable[[str], QuantizedLinear]) -> None:
    """One file and the Modelfile of Ollama."""
    checkpoint, mixture = plan.checkpoint, plan.recipe.mixture
    path = out / f"{checkpoint.name}-{plan.recipe.width}.gguf"
    if not path.exists():
        options = GgufOptions(name=checkpoint.name, mixture=mixture if mixture in FILE_TYPES else None)
        write(PartlyQuantized(checkpoint, plan.linear_specs, rounded), plan.arch, path, options)
    text = modelfile(checkpoint.side_files, checkpoint.config, path.name)
    atomic.write_bytes(out / "Modelfile", text.encode())


def _write_folder(out: Path, plan: Plan, layout: Layout, rounded: Callable[[str], QuantizedLinear]) -> None:
    """Safetensors with everything that a model's folder holds."""
    checkpoint = plan.checkpoint
    contents = Contents(plan.codec, plan.linear_specs, lambda name: checkpoint.chunks(checkpoint.info(name)), rounded)
    write_weights(out, layout, contents)
    quant_config = plan.codec.quant_config(plan.linear_specs, plan.plain, _meta(plan.recipe))
    text = with_attention_factor(checkpoint.config_text)
    if quant_config:
        text = with_key(text, "quantization_config", quant_config)
    write_side_files(out, text, checkpoint.side_files, plan.codec.side_files(quant_config))


def _meta(recipe: Recipe) -> JsonObject:
    """What the configuration of a format says of how the weights came about."""
    feedback = METHODS[recipe.method].feedback
    meta = {"quantizer": [f"r1quant:{provenance.VERSION}"], "static_groups": True}
    meta |= {"act_order": recipe.act_order and feedback}
    return meta | ({"damp_percent": recipe.damping} if feedback else {})


def _record(folder: RunDir, plan: Plan, origin: Quantization, environment: Mapping[str, str]) -> Quantization:
    """What OUT says about itself. Nothing in it depends on when, or in how many starts, it was made; but if versions or
    threads changed on the way, `changed_on_resume` says from what to what."""
    reports = [report for layer in range(plan.steps) for report in layer_files.reports(folder.layer_file(layer))]
    predicted = [report.predicted_kl for report in reports if report.predicted_kl is not None]
    return replace(
        origin,
        environment=dict(environment),
        bits_per_weight=plan.bits_per_weight,
        quantized_parameters=plan.quantized_parameters,
        predicted_kl=sum(predicted) if predicted else _predicted_kl(plan),
        fallbacks=tuple(report.remark for report in reports if report.remark),
        changed_on_resume=_changes(folder) or None,
        linears=tuple(reports),
    )


def _changes(folder: RunDir) -> tuple[Changed, ...]:
    """What changed between the starts of the run."""
    return tuple(
        Changed(name, before, after) for changed in folder.changes for name, (before, after) in changed.items()
    )


def _predicted_kl(plan: Plan) -> float | None:
    """What the choice of bits was made on, which holds for plain rounding."""
    return None if plan.allocation is None or plan.recipe.calibrated else plan.allocation.loss

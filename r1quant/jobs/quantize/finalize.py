"""Puts a finished run together as the output folder.

Each file is written whole or not at all, and one that exists is complete, so this too can be interrupted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
from r1quant.planning.planner import Plan
from r1quant.storage import atomic, provenance
from r1quant.storage.rundir import RunDir


def build(run: RunDir, made: Plan, origin: Mapping[str, Any]) -> dict[str, Any]:
    """Writes everything into run.output. Returns the record."""
    out, checkpoint = run.output, made.checkpoint
    out.mkdir(exist_ok=True)
    layer_of = {linear.name: linear.layer for linear in made.linears}
    contents = Contents(
        made.codec,
        made.linear_specs,
        lambda name: checkpoint.chunks(checkpoint.info(name)),
        lambda linear: layer_files.read(run.part(layer_of[linear]), linear),
    )
    write_weights(out, made.layout, contents)
    recipe = made.recipe
    meta: dict[str, Any] = {"quantizer": [f"r1quant:{provenance.VERSION}"], "static_groups": True}
    meta["act_order"] = recipe.act_order and recipe.method == "gptq"
    if recipe.method == "gptq":
        meta["damp_percent"] = recipe.damping
    stated = made.codec.config(made.linear_specs, made.plain, meta)
    text = with_key(with_attention_factor(checkpoint.config_text), "quantization_config", stated)
    write_side_files(out, text, checkpoint.side_files, made.codec.side_files(stated))
    record = _record(run, made, origin)
    atomic.write_bytes(out / RECORD, record_bytes(record))
    return record


def _record(run: RunDir, made: Plan, origin: Mapping[str, Any]) -> dict[str, Any]:
    """What OUT says about itself. Nothing in it depends on when, or in how many starts, it was made."""
    reports = [report for layer in range(made.layers) for report in layer_files.reports(run.part(layer))]
    predicted = [report.predicted_kl for report in reports if report.predicted_kl is not None]
    return {
        "schema": "r1quant.quantization/1",
        **origin,
        "environment": provenance.environment(),
        "bits_per_weight": made.bits_per_weight,
        "quantized_parameters": made.quantized_parameters,
        "predicted_kl": sum(predicted) if predicted else _foreseen(made),
        "fallbacks": [report.remark for report in reports if report.remark],
        "linears": [report.as_dict() for report in reports],
    }


def _foreseen(made: Plan) -> float | None:
    """What the choice of bits was made on, which holds for plain rounding."""
    return None if made.allocation is None or made.recipe.calibrated else made.allocation.loss

"""The numbers of a report: what report.json holds, and all that HTML, Markdown and charts are made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from r1quant.reporting import untrusted, variants
from r1quant.reporting.variants import VariantRecords
from r1quant.reporting.verdict import verdict

SCHEMA = "r1quant.report/1"
Summary = Mapping[str, Any]
# What a run predicted, and its measured counterpart: names, unit, where both lie in the record of the run.
PREDICTIONS = (
    ("files of the quantized model", "bytes", "predicted.output_bytes", "output_bytes"),
    ("peak memory of quantizing", "bytes", "predicted.peak_rss_bytes", "peak_rss_bytes"),
    ("time of quantizing", "seconds", "predicted.seconds", "seconds"),
)


def summary(
    found: Sequence[VariantRecords], hardware: Summary | None, commands: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """All that is known of the variants of one model.

    hardware  what the memory model says: `memory` against context, and `rows` of cards; None where no config is known
    commands  of each variant, by name: how to repeat what was measured
    """
    told = [_variant(each, hardware or {}, commands.get(each.name, ())) for each in found]
    models = sorted({each.model for each in found if each.model})
    return {
        "schema": SCHEMA,
        "models": models,
        "verdict": verdict(told),
        "variants": told,
        "hardware": hardware,
    }


def _variant(each: VariantRecords, hardware: Summary, commands: Sequence[str]) -> dict[str, Any]:
    recipe = untrusted.mapping(each.made, "recipe")
    quality, linears = variants.quality(each), variants.linears(each)
    return {
        "name": each.name,
        "model": each.model,
        "method": untrusted.text(recipe, "method"),
        "format": untrusted.text(recipe, "format"),
        "bits": None if _budgeted(recipe) else untrusted.number(recipe, "bits"),
        "bits_per_weight": variants.bits_of(each),
        "bytes": _bytes(each, hardware),
        "quality": quality,
        "gates": variants.gates(each),
        **variants.answers(each),
        "speed": variants.speed(each),
        "linears": linears,
        "remarks": [untrusted.plain(line) for line in _strings(each.made.get("fallbacks"))],
        "predictions": _predictions(each, quality),
        "commands": list(commands),
        "provenance": _provenance(each),
    }


def _budgeted(recipe: Summary) -> bool:
    return any(recipe.get(key) is not None for key in ("target_bpw", "target_size", "fit_gpu"))


def _strings(value: Any) -> list[str]:
    return [line for line in value if isinstance(line, str)] if isinstance(value, list) else []


def _bytes(each: VariantRecords, hardware: Summary) -> float | None:
    """Of the files, where a run told; else of the weights as the memory model has them."""
    stated = untrusted.number(each.run, "output_bytes")
    modelled = untrusted.number(untrusted.mapping(hardware, "weights_bytes"), each.name)
    return stated if stated is not None else modelled


def _predictions(each: VariantRecords, quality: Summary | None) -> list[dict[str, Any]]:
    found = []
    fresh = untrusted.number(each.run, "resumed_layers") == 0 and each.run.get("already_complete") is False
    for name, unit, predicted, measured in PREDICTIONS:
        if fresh or (unit == "bytes" and measured == "output_bytes"):
            found.append((name, unit, untrusted.number(each.run, predicted), untrusted.number(each.run, measured)))
    if quality is not None and quality["kl"] is not None:
        foreseen = untrusted.number(each.made, "predicted_kl")
        found.append(("KL divergence", "nats", foreseen, quality["kl"]["mean"]))
    return [
        {"what": name, "unit": unit, "predicted": predicted, "measured": measured}
        for name, unit, predicted, measured in found
        if predicted is not None and measured is not None
    ]


def _provenance(each: VariantRecords) -> list[list[str]]:
    """Names and values: hashes, recipe, text, versions."""
    found: dict[str, str] = {}
    for key in ("model", "architecture", "config", "tokenizer"):
        found[key] = untrusted.text(each.made, key) or ""
    found["source"] = untrusted.short(untrusted.text(each.made, "source") or "")
    for part in ("weights", "recipe", "compute", "calibration", "environment"):
        found |= _flat(part, untrusted.mapping(each.made, part))
    for record in each.verified:
        for part in ("hashes", "text", "environment"):
            found |= _flat(f"verify, {part}", untrusted.mapping(record, part))
        for key in ("set", "source", "sha256"):
            found[f"verify, problems {key}"] = untrusted.short(untrusted.text(record, f"aime.{key}") or "")
        for key in ("backend", "baseline_backend", "dtype"):
            found[f"verify, {key}"] = untrusted.text(record, key) or ""
    for record in each.benched:
        found |= _flat("bench", untrusted.mapping(record, "protocol")) | _flat(
            "bench, environment", untrusted.mapping(record, "environment")
        )
    return [[name, value] for name, value in found.items() if value]


def _flat(name: str, part: Summary) -> dict[str, str]:
    found = {}
    for key, value in part.items():
        if isinstance(value, str):
            found[f"{name}: {key}"] = (
                untrusted.short(value) if "/" in value or "\\" in value else untrusted.plain(value)
            )
        elif isinstance(value, bool | int) or untrusted.finite(value) is not None:
            found[f"{name}: {key}"] = str(value)
    return found

"""From the records of each variant to the summary of all of them: what a report says, in numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from r1quant.recipe import TARGETS
from r1quant.records.answers import ProblemResult, ProblemScores
from r1quant.records.quantization import Quantization, QuantizeRun
from r1quant.records.text import TextScores
from r1quant.records.verification import GateVerdict, Verification
from r1quant.reporting import paired, untrusted
from r1quant.reporting.hardware import HardwareSummary
from r1quant.reporting.provenance import provenance
from r1quant.reporting.summary import (
    LengthComparison,
    LengthHistogram,
    LinearLoss,
    ModelSummary,
    Prediction,
    ProblemCounts,
    ProblemSummary,
    Summary,
)
from r1quant.reporting.variants import VariantRecords, models_of
from r1quant.reporting.verdict import verdict

NAMED = 60  # problems that a report names
LAYER = re.compile(r"layers\.(\d{1,6})\.")


def summarize(
    variants: Sequence[VariantRecords], hardware: HardwareSummary | None, commands: Mapping[str, Sequence[str]]
) -> Summary:
    """All that is known of the variants of one model.

    hardware  what the memory model says; None if no config is known
    commands  of each variant, by name: how to repeat what was measured
    """
    models = tuple(_model(variant, hardware, commands.get(variant.name, ())) for variant in variants)
    return Summary(tuple(models_of(variants)), verdict(models), models, hardware)


def _model(variant: VariantRecords, hardware: HardwareSummary | None, commands: Sequence[str]) -> ModelSummary:
    quantization = variant.quantization or Quantization()
    recipe, bits = quantization.recipe, quantization.recipe.get("bits")
    budget = any(recipe.get(key) is not None for key in TARGETS)
    scores = next((one.scores for one in variant.verifications if one.scores), None)
    asked = next((one for one in variant.verifications if one.aime), None)
    return ModelSummary(
        name=variant.name,
        model=variant.model,
        method=_text(recipe.get("method")),
        format=_text(recipe.get("format")),
        bits=bits if isinstance(bits, int | float) and not budget else None,
        bits_per_weight=quantization.bits_per_weight,
        nbytes=_nbytes(variant, hardware),
        quality=scores,
        gates=_gates(variant.verifications),
        problems=problem_summary(asked.aime) if asked and asked.aime else None,
        lengths=length_comparison(asked) if asked else None,
        health=asked.health.habits if asked and asked.health else None,
        speed=tuple(row for record in variant.benches for row in record.rows),
        reference=tuple(record.reference for record in variant.benches if record.reference),
        linears=_linears(quantization),
        remarks=tuple(map(untrusted.plain, quantization.fallbacks)),
        predictions=_predictions(variant, scores),
        commands=tuple(commands),
        provenance=provenance(variant),
    )


def _text(value: object) -> str | None:
    return untrusted.plain(value) if isinstance(value, str) else None


def _nbytes(variant: VariantRecords, hardware: HardwareSummary | None) -> float | None:
    """Of the files if a run recorded them, else of the weights as the memory model has them."""
    if variant.run is not None and variant.run.output_bytes is not None:
        return variant.run.output_bytes
    return None if hardware is None else hardware.weights_bytes.get(variant.name)


def _gates(verifications: Sequence[Verification]) -> tuple[GateVerdict, ...]:
    """Every gate that was set, with the last verdict on it."""
    return tuple({verdict.gate: verdict for record in verifications for verdict in record.gates}.values())


def problem_summary(scores: ProblemScores) -> ProblemSummary:
    """A problem counts as solved if more than half of its samples are right."""

    def solved(row: ProblemResult) -> tuple[bool, bool]:
        return 2 * row.baseline > scores.samples, 2 * row.quantized > scores.samples

    rows = scores.table
    changed = [ProblemCounts(row.key, row.baseline, row.quantized) for row in rows if row.baseline != row.quantized]
    return ProblemSummary(
        untrusted.plain(scores.asked.set),
        scores.problems,
        scores.samples,
        scores.baseline,
        scores.quantized,
        scores.difference,
        paired.pair([*map(solved, rows)]) if rows else None,
        tuple(changed[:NAMED]),
        len(changed),
    )


def length_comparison(record: Verification) -> LengthComparison | None:
    """None if the record does not say how long answers were."""
    habits = record.health.habits if record.health else None
    if habits is None:
        return None
    lengths = habits.baseline.length, habits.quantized.length
    return LengthComparison(*lengths, habits.length_ratio, habits.length_ratio_ci95, _histogram(record.aime))


def _histogram(scores: ProblemScores | None) -> LengthHistogram | None:
    """None if the record does not have the length of every answer."""
    lengths = [row.tokens for row in scores.table if row.tokens is not None] if scores else []
    baseline = [count for one in lengths for count in one.baseline]
    quantized = [count for one in lengths for count in one.quantized]
    return paired.histogram(baseline, quantized) if baseline and quantized else None


def _linears(record: Quantization) -> tuple[LinearLoss, ...]:
    losses = []
    for linear in record.linears:
        layer = LAYER.search(linear.name)
        name = untrusted.plain(linear.name)
        losses.append(LinearLoss(name, int(layer[1]) if layer else None, linear.relative_loss, linear.predicted_kl))
    return tuple(losses)


def _predictions(variant: VariantRecords, scores: TextScores | None) -> tuple[Prediction, ...]:
    """Time and memory only of a run that made every layer itself."""
    pairs = _run_predictions(variant.run) if variant.run else []
    if scores is not None and scores.kl is not None:
        predicted = variant.quantization.predicted_kl if variant.quantization else None
        pairs.append(("KL divergence", "nats", predicted, scores.kl.mean))
    return tuple(
        Prediction(what, unit, predicted, measured)
        for what, unit, predicted, measured in pairs
        if predicted is not None and measured is not None
    )


def _run_predictions(run: QuantizeRun) -> list[tuple[str, str, float | None, float | None]]:
    predicted = run.predicted
    if predicted is None:
        return []
    pairs: list[tuple[str, str, float | None, float | None]] = [
        ("files of the quantized model", "bytes", predicted.output_bytes, run.output_bytes)
    ]
    if run.resumed_layers == 0 and run.already_complete is False:
        pairs.append(("peak memory while quantizing", "bytes", predicted.peak_rss_bytes, run.peak_rss_bytes))
        pairs.append(("time to quantize", "seconds", predicted.seconds, run.seconds))
    return pairs

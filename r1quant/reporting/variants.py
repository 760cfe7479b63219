"""From records to variants: what was measured of each quantized model, in the words of the report.

It does not know where the records lie, and draws nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from r1quant.reporting import paired, untrusted

QUANTIZATION, RUN = "r1quant.quantization/1", "r1quant.quantize/1"
VERIFICATION, BENCH = "r1quant.verification/2", "r1quant.bench/1"
SCHEMAS = (QUANTIZATION, RUN, VERIFICATION, BENCH)
LAYER = re.compile(r"layers\.(\d{1,6})\.(.+)")
SPEEDS = ("prefill_tokens_per_second", "decode_tokens_per_second", "ttft_seconds")


@dataclass
class VariantRecords:
    """The records of one quantized model, by kind; more of a kind are kept in the order in which they were given."""

    name: str
    made: Mapping[str, Any] = field(default_factory=dict)
    run: Mapping[str, Any] = field(default_factory=dict)
    verified: list[Mapping[str, Any]] = field(default_factory=list)
    benched: list[Mapping[str, Any]] = field(default_factory=list)

    @property
    def model(self) -> str | None:
        """What it was made from."""
        named = [untrusted.text(self.made, "model"), *(untrusted.text(each, "model") for each in self.verified)]
        named += [untrusted.text(each, "model") for each in self.benched]
        return next((untrusted.short(name) for name in named if name), None)


def gathered(records: Sequence[tuple[str, Mapping[str, Any]]]) -> list[VariantRecords]:
    """One variant for every name of an output; records are given with the name of the folder that they lie in."""
    found: dict[str, VariantRecords] = {}
    for folder, record in records:
        schema = record.get("schema")
        stated = folder if schema == QUANTIZATION else untrusted.text(record, "out") or folder
        name = untrusted.short(stated).rpartition("/")[2] or "artifact"
        variant = found.setdefault(name, VariantRecords(name))
        if schema == QUANTIZATION:
            variant.made = variant.made or record
        elif schema == RUN:
            fuller = "predicted" in record and "predicted" not in variant.run
            variant.run = record if fuller or not variant.run else variant.run
            variant.made = variant.made or untrusted.mapping(record, "record")
        elif record not in (kept := variant.verified if schema == VERIFICATION else variant.benched):
            kept.append(record)
    return sorted(found.values(), key=lambda variant: (-(bits_of(variant) or 0), variant.name))


def bits_of(variant: VariantRecords) -> float | None:
    """Stored bits of a quantized weight, with its share of scales and zero points."""
    return untrusted.number(variant.made, "bits_per_weight")


def quality(variant: VariantRecords) -> dict[str, Any] | None:
    """What a text said of the model: the first verification that has one."""
    record = next((each for each in variant.verified if untrusted.mapping(each, "perplexity")), None)
    if record is None:
        return None
    ppl, kl = untrusted.mapping(record, "perplexity"), untrusted.mapping(record, "kl")
    sides = ("baseline", "quantized", "ratio")
    return {
        "tokens": untrusted.count(record, "tokens"),
        "text": untrusted.text(record, "text.source"),
        "windows": untrusted.count(record, "text.windows"),
        "seq_len": untrusted.count(record, "text.seq_len"),
        "perplexity": {key: untrusted.number(ppl, key) for key in sides}
        | {f"{key}_ci95": untrusted.bounds(ppl, f"{key}_ci95") for key in sides},
        "kl": None if untrusted.number(kl, "mean") is None else _divergence(kl),
        "top1": untrusted.number(record, "top1"),
        "top1_ci95": untrusted.bounds(record, "top1_ci95"),
        "by_class": {
            name: {
                "tokens": untrusted.count(part, "tokens"),
                "kl": _at_least_nothing(untrusted.number(part, "kl.mean")),
            }
            for name, part in untrusted.mapping(record, "by_class").items()
        },
    }


def _at_least_nothing(value: float | None) -> float | None:
    """Rounding leaves divergences of nothing a little below it."""
    return None if value is None else max(0.0, value)


def _divergence(kl: Mapping[str, Any]) -> dict[str, Any]:
    places = [
        {key: untrusted.number(place, key) for key in ("from", "to", "mean")}
        for place in untrusted.rows(kl, "by_position")
    ]
    return {
        **{key: untrusted.number(kl, key) for key in ("mean", "median", "p99", "max", "predicted")},
        "mean_ci95": untrusted.bounds(kl, "mean_ci95"),
        "by_position": [place for place in places if None not in place.values()],
    }


def linears(variant: VariantRecords) -> list[dict[str, Any]]:
    """How each linear fared: its layer, what it is, its relative loss and the KL that it is predicted to cost."""
    found = []
    for row in untrusted.rows(variant.made, "linears"):
        name, loss = untrusted.text(row, "name") or "", untrusted.number(row, "relative_loss")
        place = LAYER.search(name)
        if loss is not None:
            found.append(
                {
                    "name": name,
                    "layer": int(place[1]) if place else None,
                    "kind": place[2].rpartition(".")[2] if place else name.rpartition(".")[2],
                    "relative_loss": loss,
                    "predicted_kl": untrusted.number(row, "predicted_kl"),
                }
            )
    return found


def gates(variant: VariantRecords) -> list[dict[str, Any]]:
    """Every gate that was set, the last verdict on each."""
    found = {}
    for record in variant.verified:
        for gate in untrusted.rows(record, "gates"):
            name = untrusted.text(gate, "gate")
            if name:
                passed = gate.get("passed") is True
                found[name] = {"gate": name, "value": untrusted.number(gate, "value"), "passed": passed}
    return list(found.values())


def answers(variant: VariantRecords) -> dict[str, Any]:
    """The problems and lengths of the first verification that asked any."""
    record = next((each for each in variant.verified if untrusted.mapping(each, "aime")), {})
    health = {
        side: {key: untrusted.number(record, f"health.{side}.{key}") for key in paired_signs()}
        for side in ("baseline", "quantized")
    }
    known = any(value is not None for side in health.values() for value in side.values())
    return {"problems": paired.problems(record), "lengths": paired.lengths(record), "health": health if known else None}


def paired_signs() -> tuple[str, ...]:
    return ("closed_think", "truncated", "unparsed", "loops", "language_mixing")


def speed(variant: VariantRecords) -> list[dict[str, Any]]:
    """A row for every load that was timed."""
    return [
        _load(record, row, at) for record in variant.benched for at, row in enumerate(untrusted.rows(record, "rows"))
    ]


def _load(record: Mapping[str, Any], row: Mapping[str, Any], index: int) -> dict[str, Any]:
    modelled = untrusted.rows(record, "reference.rows")
    beside = modelled[index] if index < len(modelled) else {}
    found: dict[str, Any] = {key: untrusted.count(row, key) for key in ("prompt_tokens", "new_tokens", "batch")}
    for side in ("baseline", "quantized"):
        part = untrusted.mapping(row, side)
        found[side] = _timed(part) if part else None
    found["ratio"] = untrusted.number(row, "ratio.decode_tokens_per_second.median")
    found["reference"] = {
        "card": untrusted.text(record, "reference.card"),
        "source": untrusted.text(record, "reference.source"),
        **{
            side: {key: untrusted.number(beside, f"{side}.{key}") for key in (*SPEEDS, "total_bytes")}
            for side in ("baseline", "quantized")
        },
    }
    return found


def _timed(part: Mapping[str, Any]) -> dict[str, Any]:
    spreads = {key: {end: untrusted.number(part, f"{key}.{end}") for end in ("median", "min", "max")} for key in SPEEDS}
    where = [untrusted.text(part, key) for key in ("backend", "device", "dtype")]
    return {
        **{key: spread if None not in spread.values() else None for key, spread in spreads.items()},
        "peak_memory_bytes": untrusted.count(part, "peak_memory_bytes"),
        "memory": untrusted.text(part, "memory"),
        "where": ", ".join(filter(None, where)),
    }

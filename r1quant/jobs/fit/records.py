"""What bench measured, beside what fit predicts: records of the same model on known hardware, and the shares of the
roofline fitted to them, for each machine and runtime.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from r1quant.checkpoint.safetensors import read_json
from r1quant.errors import CheckpointError, RecipeError
from r1quant.hardware.cards import Card, driven
from r1quant.hardware.detect import Host, host, processor
from r1quant.hardware.fitting import Point, fitted
from r1quant.hardware.inventory import Inventory
from r1quant.hardware.roofline import USUAL, Efficiency, Sizes
from r1quant.planning.variants import FormatVariant, VariantWeights, held, variants

SCHEMA = "r1quant.bench/1"
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
SAME_BYTES = 0.02  # by which the weights of a variant and of a record may differ


@dataclass(frozen=True)
class Measurement:
    """One model at one load: in which format, in what, and the figures."""

    record: str
    format: str
    weights_bytes: int
    backend: str
    dtype: str | None
    memory: str | None
    point: Point

    def as_dict(self, efficiency: Efficiency) -> dict[str, Any]:
        """With the prediction for the very same load, and by how much it is off."""
        at, (ttft, step) = self.point, self.point.predicted(efficiency)
        prompts, texts = at.batch * at.prompt_tokens, at.batch
        return {
            "record": self.record,
            "backend": self.backend,
            "dtype": self.dtype,
            "prompt_tokens": at.prompt_tokens,
            "new_tokens": at.new_tokens,
            "batch": at.batch,
            "prefill_tokens_per_second": prompts / at.ttft_seconds,
            "decode_tokens_per_second": texts / at.step_seconds,
            "peak_memory_bytes": at.memory_bytes,
            "predicted_prefill_tokens_per_second": prompts / ttft,
            "predicted_decode_tokens_per_second": texts / step,
            "prefill_error": at.ttft_seconds / ttft - 1,
            "decode_error": at.step_seconds / step - 1,
        }


@dataclass(frozen=True)
class Fitted:
    """machine, backend: of the records; points: how many measurements; error: the median one that is left, of decode
    speeds, and what it was with the usual shares.
    """

    machine: str
    backend: str
    efficiency: Efficiency
    points: int
    error: float
    usual_error: float

    def as_dict(self) -> dict[str, Any]:
        shown = {key: value for key, value in vars(self).items() if key != "efficiency"}
        return {**shown, **vars(self.efficiency)}


@dataclass(frozen=True)
class Records:
    """variants: those that were measured, with the bytes they have."""

    measurements: tuple[Measurement, ...] = ()
    fitted: tuple[Fitted, ...] = ()
    variants: Mapping[FormatVariant, VariantWeights] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def cards(self) -> list[Card]:
        """The hardware that was measured on."""
        return list(dict.fromkeys(one.point.card for one in self.measurements))

    def efficiency(self, card: Card, backend: str) -> Efficiency:
        """What was fitted for this card in this runtime, else the usual."""
        own = (one.efficiency for one in self.fitted if (one.machine, one.backend) == (card.name, backend))
        return next(own, USUAL)

    def beside(self, card: Card, variant: FormatVariant) -> tuple[dict[str, Any], ...]:
        """What was measured of a variant on a card."""
        found = [one for one in self.measurements if one.point.card.name == card.name]
        mine = [one for one in found if _nearest(one, self.variants) == variant]
        return tuple(one.as_dict(self.efficiency(card, one.backend)) for one in mine)


def read_records(paths: Sequence[Path], model: Inventory, of: Sizes, table: Iterable[Card]) -> Records:
    """The measurements of this model in records of bench. `of`: its sizes in 16 bits.

    Raises RecipeError where a path is not there, CheckpointError where a file that was named is no record.
    """
    table, here = list(table), host()
    found: list[Measurement] = []
    notes: list[str] = []
    for path, named in _files(paths):
        record = read_json(path)
        if not isinstance(record, dict) or record.get("schema") != SCHEMA:
            if named:
                raise CheckpointError(f"{path} is no record of bench", "write one: r1quant bench OUT --record FILE")
            continue
        mine, why = _measurements(path.name, record, of, table, here)
        found += mine
        notes += [f"{path.name} is left out: {why}"] if why else []
    groups: dict[tuple[str, str], list[Measurement]] = {}
    for one in found:
        groups.setdefault((one.point.card.name, one.backend), []).append(one)
    formats = {one.format for one in found}
    able = held(model, [variant for variant in variants() if variant.format in formats and variant.label != "bf16"])
    measured = {near: able[near] for one in found if (near := _nearest(one, able)) is not None}
    return Records(tuple(found), tuple(_fit(*key, group) for key, group in groups.items()), measured, tuple(notes))


def _fit(machine: str, backend: str, group: Sequence[Measurement]) -> Fitted:
    points = [one.point for one in group]
    made = fitted(points)

    def error(efficiency: Efficiency) -> float:
        return statistics.median(abs(p.step_seconds / p.predicted(efficiency)[1] - 1) for p in points)

    return Fitted(machine, backend, made, len(points), error(made), error(USUAL))


def _files(paths: Sequence[Path]) -> list[tuple[Path, bool]]:
    """The files, and whether each was named itself."""
    found: list[tuple[Path, bool]] = []
    for path in paths:
        if not path.exists():
            raise RecipeError(f"there is no {path}", "name files that r1quant bench --record wrote, or their folder")
        found += [(file, False) for file in sorted(path.rglob("*.json"))] if path.is_dir() else [(path, True)]
    return found


def _measurements(
    name: str, record: Mapping[str, Any], of: Sizes, table: Sequence[Card], here: Host
) -> tuple[list[Measurement], str]:
    """Of one record; or why there are none."""
    sizes = record.get("sizes") or {}
    if not isinstance(sizes, dict) or "quantized" not in sizes:
        return [], "it does not say how large the model is; measure again"
    if any(sizes["quantized"].get(key) != getattr(of, key) for key in ("layers", "layer_weights", "head_weights")):
        return [], "it is of another model"
    found = []
    for row in record["rows"]:
        for side in ("quantized", "baseline"):
            figures = row.get(side)
            if not figures or not figures.get("decode_tokens_per_second") or not figures.get("ttft_seconds"):
                continue
            card = _card(figures, record.get("machine") or {}, table, here)
            if card is None:
                return [], "nothing is known of the hardware that it is from"
            stored = int(sizes[side]["weights_bytes"])
            point = Point(
                _as_run(of, figures, stored),
                card,
                row["prompt_tokens"],
                row["new_tokens"],
                row["batch"],
                figures["ttft_seconds"]["median"],
                row["batch"] / figures["decode_tokens_per_second"]["median"],
                figures.get("peak_memory_bytes"),
            )
            format = record["format"] if side == "quantized" else "safetensors"
            ran = str(figures["backend"])
            found.append(Measurement(name, format, stored, ran, figures.get("dtype"), figures.get("memory"), point))
    return found, "" if found else "no speed was measured"


def _card(figures: Mapping[str, Any], machine: Mapping[str, Any], table: Sequence[Card], here: Host) -> Card | None:
    """The hardware of a measurement: a known card, or the processor of this machine; None where it is neither."""
    told = figures.get("card")
    if told:
        return driven(told["name"], told["memory_bytes"], table)
    if not machine or figures.get("backend") == "openai":
        return None
    ran = Host(machine["processor"], machine["cores"], machine["memory_bytes"])
    listed = next((card for card in table if card.name == ran.name), None)
    return listed or (processor(here) if ran.name == here.name else None)


def _as_run(of: Sizes, figures: Mapping[str, Any], stored: int) -> Sizes:
    """torch holds all weights dequantized, in its dtype; other runtimes as they are stored."""
    unread = of.weights_bytes - of.streamed_bytes
    item = ITEM_BYTES.get(str(figures.get("dtype")), 2)
    if figures["backend"] == "torch":
        return replace(
            of,
            weights_bytes=of.weights_bytes * item // 2,
            streamed_bytes=of.streamed_bytes * item // 2,
            number_bytes=float(item),
        )
    return replace(of, weights_bytes=stored, streamed_bytes=round(stored * (1 - unread / of.weights_bytes)))


def _nearest(one: Measurement, known: Mapping[FormatVariant, VariantWeights]) -> FormatVariant | None:
    """The variant that a measured model is: of its format, the one of about as many bytes."""
    alike = {v: abs(w.total / one.weights_bytes - 1) for v, w in known.items() if v.format == one.format}
    best = min(alike, key=lambda variant: alike[variant], default=None)
    return best if best is not None and alike[best] < SAME_BYTES else None

"""What bench measured, beside what fit predicts: records of the same model on known hardware, and the shares of the
roofline fitted to them, for each machine and runtime.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from r1quant.checkpoint.safetensors import read_json
from r1quant.core.json import JsonObject
from r1quant.errors import CheckpointError, RecipeError
from r1quant.hardware.cards import Card, driven
from r1quant.hardware.detect import Host, host, processor
from r1quant.hardware.fitting import Point, fitted
from r1quant.hardware.inventory import Inventory
from r1quant.hardware.roofline import USUAL, Efficiency, Sizes
from r1quant.planning.variants import FormatVariant, VariantWeights, held, variants
from r1quant.records.bench import Bench, BenchMachine, Timing
from r1quant.records.table import read_record

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
SAME_BYTES = 0.02  # by which the weights of a variant and of a record may differ


@dataclass(frozen=True)
class MeasuredLoad:
    """One model at one load: what was measured, what is predicted for the very same load, and by how much that is off.

    Speeds are tokens per second of all texts together; an error of 0.1 is a prediction that is 10 % too high.
    """

    record: str
    backend: str
    dtype: str | None
    prompt_tokens: int
    new_tokens: int
    batch: int
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    peak_memory_bytes: int | None
    predicted_prefill_tokens_per_second: float
    predicted_decode_tokens_per_second: float
    prefill_error: float
    decode_error: float

    def as_dict(self) -> JsonObject:
        return asdict(self)


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

    def beside(self, efficiency: Efficiency) -> MeasuredLoad:
        at, (ttft, step) = self.point, self.point.predicted(efficiency)
        prompts = at.batch * at.prompt_tokens
        return MeasuredLoad(
            record=self.record,
            backend=self.backend,
            dtype=self.dtype,
            prompt_tokens=at.prompt_tokens,
            new_tokens=at.new_tokens,
            batch=at.batch,
            prefill_tokens_per_second=prompts / at.ttft_seconds,
            decode_tokens_per_second=at.batch / at.step_seconds,
            peak_memory_bytes=at.memory_bytes,
            predicted_prefill_tokens_per_second=prompts / ttft,
            predicted_decode_tokens_per_second=at.batch / step,
            prefill_error=at.ttft_seconds / ttft - 1,
            decode_error=at.step_seconds / step - 1,
        )


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

    def as_dict(self) -> JsonObject:
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

    def beside(self, card: Card, variant: FormatVariant) -> tuple[MeasuredLoad, ...]:
        """What was measured of a variant on a card."""
        found = [one for one in self.measurements if one.point.card.name == card.name]
        mine = [one for one in found if _nearest(one, self.variants) == variant]
        return tuple(one.beside(self.efficiency(card, one.backend)) for one in mine)


def read_records(paths: Sequence[Path], model: Inventory, of: Sizes, table: Iterable[Card]) -> Records:
    """The measurements of this model in records of bench. `of`: its sizes in 16 bits.

    Raises RecipeError if a path is not there, CheckpointError if a file that was named is no record.
    """
    table, here = list(table), host()
    found: list[Measurement] = []
    notes: list[str] = []
    for path, named in _files(paths):
        record = read_record(read_json(path), lenient=True)
        if not isinstance(record, Bench):
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
    name: str, record: Bench, of: Sizes, table: Sequence[Card], here: Host
) -> tuple[list[Measurement], str]:
    """Of one record; or why there are none."""
    own = record.sizes.get("quantized")
    if own is None:
        return [], "it does not say how large the model is; measure again"
    if (own.layers, own.layer_weights, own.head_weights) != (of.layers, of.layer_weights, of.head_weights):
        return [], "it is of another model"
    measurements = []
    for row in record.rows:
        for side, timing in (("quantized", row.quantized), ("baseline", row.baseline)):
            speeds = None if timing is None else _step(timing, row.batch)
            if timing is None or speeds is None or side not in record.sizes:
                continue
            card = _card(timing, record.machine, table, here)
            if card is None:
                return [], "nothing is known of the hardware that it is from"
            stored = record.sizes[side].weights_bytes
            point = Point(_as_run(of, timing, stored), card, *row.load, *speeds, timing.peak_memory_bytes)
            format = (record.format or "") if side == "quantized" else "safetensors"
            measurements.append(Measurement(name, format, stored, timing.backend, timing.dtype, timing.memory, point))
    return measurements, "" if measurements else "no speed was measured"


def _step(timing: Timing, batch: int) -> tuple[float, float] | None:
    """Seconds to the first token, and of a step of all texts after it; None if they were not measured."""
    first, decode = timing.speeds.ttft_seconds, timing.speeds.decode_tokens_per_second
    return None if first is None or decode is None or not decode.median else (first.median, batch / decode.median)


def _card(timing: Timing, machine: BenchMachine | None, table: Sequence[Card], here: Host) -> Card | None:
    """The hardware of a measurement: a known card, or the processor of this machine; None if it is neither."""
    if timing.card is not None:
        return driven(timing.card.name, timing.card.memory_bytes, table)
    if machine is None or timing.backend == "openai":
        return None
    ran = Host(machine.processor, machine.cores, machine.memory_bytes)
    listed = next((card for card in table if card.name == ran.name), None)
    return listed or (processor(here) if ran.name == here.name else None)


def _as_run(of: Sizes, timing: Timing, stored: int) -> Sizes:
    """torch holds all weights dequantized, in its dtype; other runtimes as they are stored."""
    unread = of.weights_bytes - of.streamed_bytes
    item = ITEM_BYTES.get(timing.dtype or "", 2)
    if timing.backend == "torch":
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

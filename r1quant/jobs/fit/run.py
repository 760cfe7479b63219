"""fit: what a model needs of hardware in every format, from its config and headers alone, and which hardware that is.

Bytes are those of the formats' own layouts; speeds are modelled, and measured ones stand beside them if there are
records of bench. No weight is read, nor downloaded.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from r1quant.arch.tables import size
from r1quant.core.json import JsonObject
from r1quant.errors import RecipeError
from r1quant.hardware import roofline
from r1quant.hardware.cards import Card, cards, matching, with_own
from r1quant.hardware.inventory import Inventory
from r1quant.jobs.fit.model import outline
from r1quant.jobs.fit.options import FitOptions
from r1quant.jobs.fit.rows import BASELINE_CARD, BASELINE_FORMAT, Row, Rows
from r1quant.planning.recommend import Capacities, Load, Recommendation, candidates, recommend, usual_efficiency
from r1quant.planning.variants import FormatVariant, VariantWeights, held, usual, variants

TYPICAL = ("RTX 4060", "RTX 3060 12GB", "RTX 4090", "A100 80GB")  # for which something is recommended if none is named
DEFAULT_CONTEXT = 32768  # what reasoning takes
TOGETHER = (1, 2, 4, 8)  # cards, if one does not hold it
ALONE = ("laptop", "apple", "jetson", "cpu")  # kinds of which one does not buy several

if TYPE_CHECKING:
    from r1quant.jobs.fit.records import Records


@dataclass(frozen=True)
class Fit:
    """What a model needs of hardware.

    model            what it is
    load             what is asked of it
    recommendations  for each card that is asked for, or for typical ones
    rows             each variant on each card
    buy              the smallest hardware of each kind for each variant
    """

    model: JsonObject
    load: Load
    recommendations: tuple[Recommendation, ...]
    rows: tuple[Row, ...]
    buy: tuple[Row, ...]
    notes: tuple[str, ...]
    records: Records | None = None

    def as_dict(self) -> JsonObject:
        keys = ("format", "kind", "gpu", "tensor_parallel", "total_bytes", "max_context", "decode_tokens_per_second")
        load = self.load
        return {
            "model": dict(self.model),
            "recommendation": {
                "text": "\n".join(one.text for one in self.recommendations),
                "cards": [one.as_dict() for one in self.recommendations],
            },
            "context": load.context,
            "batch": load.batch,
            "kv_bits": load.kv_bits,
            "tensor_parallel": load.count,
            "rows": [row.as_dict() for row in self.rows],
            "buy": [{key: row.as_dict()[key] for key in keys} for row in self.buy],
            "fitted": [one.as_dict() for one in self.records.fitted] if self.records else [],
            "assumptions": roofline.assumptions(),
            "notes": list(self.notes),
        }


def fit(model: str | Path, options: FitOptions | None = None) -> Fit:
    """Every variant that is asked for on every card that is asked for, and what to take on them.

    Raises RecipeError for what is not known or cannot be asked, CheckpointError if the model is not found or its config
    lacks a size.
    """
    options = options or FitOptions()
    outlined = outline(model)
    inventory, config = outlined.inventory, outlined.inventory.config
    positions = config.get("max_position_embeddings")
    positions = positions if isinstance(positions, int) else None
    load = Load(_context(options, positions), options.batch, options.kv_bits, options.count)
    table, chosen, notes = _cards(options)
    _check_split(inventory, options.count)
    weights = _weights(inventory, options)
    records = _records(inventory, options, table)
    if records is not None:
        weights |= {} if options.narrowed else {v: w for v, w in records.variants.items() if v not in weights}
        notes += records.notes
        here = [card for card in records.cards if card not in chosen]
        chosen = [*chosen, *here] if options.named else records.cards or chosen
    capacities = Capacities(inventory, weights, load, positions, records.efficiency if records else usual_efficiency)
    rows = Rows(capacities, records)
    shown = [variant for variant in weights if _asked(variant, options)]
    advised = chosen if options.named or records is not None else [table[name] for name in TYPICAL]
    among = candidates(shown, bool(options.formats), bool(options.bits))
    about = {
        "name": outlined.name,
        "architecture": config.get("model_type"),
        "parameters": inventory.parameters,
        "dtype": inventory.dtype,
        "layers": size(config, "num_hidden_layers"),
        "kv_bytes_per_token": capacities.sizes(next(iter(weights))).kv_bytes,
        "max_positions": positions,
        "missing_bytes": outlined.missing_bytes,
    }
    return Fit(
        about,
        load,
        tuple(recommend(capacities, among, card, table.values()) for card in advised if among),
        tuple(_all_rows(rows, shown, chosen, table)),
        tuple(_buy(rows, shown, table)),
        tuple(filter(None, (*outlined.notes, *notes))),
        records,
    )


def _all_rows(
    rows: Rows, shown: Sequence[FormatVariant], chosen: Sequence[Card], table: Mapping[str, Card]
) -> Iterator[Row]:
    """The baseline; then card by card, what fits first."""
    base, count = next(iter(rows.capacities.weights)), rows.capacities.load.count
    if base.label == BASELINE_FORMAT:
        yield rows.row(base, table[BASELINE_CARD], 1)
    for card in chosen:
        own = [rows.row(variant, card, count) for variant in shown]
        own = [row for row in own if not (row.baseline and count == 1)]
        yield from sorted(own, key=lambda row: not row.modelled.fits)


def _context(options: FitOptions, longest: int | None) -> int:
    if options.context is None:
        return min(DEFAULT_CONTEXT, longest or DEFAULT_CONTEXT)
    if longest is not None and options.context > longest:
        raise RecipeError(
            f"context {options.context} is longer than the model's {longest} positions", f"use --context {longest}"
        )
    return options.context


def _cards(options: FitOptions) -> tuple[Mapping[str, Card], list[Card], list[str]]:
    """The table, the cards of it that are asked for, and notes on them."""
    table = cards() if options.hardware is None else with_own(options.hardware)
    chosen, notes = [card for name in options.gpus for card in matching(name, table)], list[str]()
    if options.hardware is not None and not options.gpus:
        chosen += [card for card in table.values() if cards().get(card.name) != card]
    if options.detect:
        from r1quant.hardware.detect import machine

        here = machine(table.values())
        chosen += here.cards
        notes += here.notes
    return table, list(dict.fromkeys(chosen)) or list(table.values()), notes


def _check_split(model: Inventory, count: int) -> None:
    heads = size(model.config, "num_attention_heads")
    if heads % count:
        able = ", ".join(str(n) for n in range(1, min(heads, 16) + 1) if heads % n == 0)
        raise RecipeError(f"{heads} attention heads cannot be split over {count} cards", f"use --gpus {able}")


def _weights(model: Inventory, options: FitOptions) -> dict[FormatVariant, VariantWeights]:
    """The variants that are asked for, floats first. Raises RecipeError if none is known or can hold the model."""
    floats = [variant for variant in variants() if variant.label == BASELINE_FORMAT]
    if not options.narrowed:
        return held(model, floats) | usual(model)
    known = {name for v in variants() for name in (v.label, v.format)}
    absent = [name for name in options.formats if name.lower() not in known]
    if absent:
        raise RecipeError(f"there is no format {absent[0]!r}", f"choose from {', '.join(sorted({*_formats()}))}")
    named = [variant for variant in variants() if _asked(variant, options)]
    holding = held(model, named)
    if not holding:
        reason = "no variant has these formats and bits" if not named else "no such variant can hold this model"
        raise RecipeError(reason, "ask for other --format or --bits")
    return held(model, floats) | holding


def _formats() -> list[str]:
    return [variant.format for variant in variants()] + [BASELINE_FORMAT]


def _asked(variant: FormatVariant, options: FitOptions) -> bool:
    named = not options.formats or any(name.lower() in (variant.label, variant.format) for name in options.formats)
    return named and (not options.bits or variant.bits in options.bits)


def _records(model: Inventory, options: FitOptions, table: Mapping[str, Card]) -> Records | None:
    if not options.records:
        return None
    from r1quant.jobs.fit.records import read_records

    halves = roofline.sized(model, 2 * model.parameters, 2 * (model.parameters - _unread(model)))
    return read_records(options.records, model, halves, table.values())


def _unread(model: Inventory) -> int:
    """Numbers of an embedding that is not the head too."""
    return 0 if model.tied else sum(part.numbers for part in model.parts if part.role == "embedding")


def _buy(rows: Rows, shown: Sequence[FormatVariant], table: Mapping[str, Card]) -> list[Row]:
    """For each variant and each kind of hardware the smallest that holds it, several cards if one does not."""
    heads, count = size(rows.capacities.model.config, "num_attention_heads"), rows.capacities.load.count
    smallest = []
    ordered = sorted(table.values(), key=lambda card: (card.memory_bytes, card.bandwidth))
    kinds = dict.fromkeys(card.kind for card in table.values())
    for variant, kind in itertools.product(shown, kinds):
        counts = (1,) if kind in ALONE else tuple(n for n in TOGETHER if heads % n == 0 and n >= count)
        tried = (rows.row(variant, card, n) for n in counts for card in ordered if card.kind == kind)
        holding = next((made for made in tried if made.modelled.fits), None)
        if holding is not None:
            smallest.append(holding)
    return smallest

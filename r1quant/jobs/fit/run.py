"""fit: what a model needs of hardware in every format, from its config and headers alone, and which hardware that is.

Bytes are those of the formats' own layouts; speeds are modelled, and measured ones stand beside them where there are
records of bench. No weight is read, nor downloaded.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r1quant.arch.tables import size
from r1quant.errors import RecipeError
from r1quant.hardware import roofline
from r1quant.hardware.cards import Card, cards, matching, with_own
from r1quant.hardware.inventory import Inventory
from r1quant.hardware.roofline import USUAL, Modelled, Sizes
from r1quant.jobs.fit.model import outline
from r1quant.planning.variants import FormatVariant, VariantWeights, held, usual, variants
from r1quant.recipe import FLOAT

BASELINE_CARD, BASELINE_FORMAT = "A100 40GB", "fp16"
DEFAULT_CONTEXT = 32768  # what reasoning takes
PROMPT = 512
TOGETHER = (1, 2, 4, 8)  # cards, where one does not hold it
ALONE = ("laptop", "apple", "jetson", "cpu")  # kinds of which one does not buy several

if TYPE_CHECKING:
    from r1quant.jobs.fit.records import Records


@dataclass(frozen=True)
class FitOptions:
    """What is asked.

    gpus      names of cards, or of kinds of them; all where it is empty
    formats   names of formats or of variants, bits: of weights; the usual ones where both are empty
    context   tokens of each text, prompt and answer; None takes what reasoning needs, or the model's longest
    batch     texts at the same time
    kv_bits   of a number in the cache
    count     cards of one kind that share the model
    hardware  a file with cards of one's own
    detect    whether this machine is one of them
    records   files of bench, or folders with them
    """

    gpus: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    bits: tuple[int, ...] = ()
    context: int | None = None
    batch: int = 1
    kv_bits: int = FLOAT
    count: int = 1
    hardware: Path | None = None
    detect: bool = False
    records: tuple[Path, ...] = ()

    @property
    def named(self) -> bool:
        """Whether hardware is named, rather than asked for."""
        return bool(self.gpus or self.hardware or self.detect)

    @property
    def narrowed(self) -> bool:
        """Whether formats or bits are named."""
        return bool(self.formats or self.bits)

    def __post_init__(self) -> None:
        """Raises RecipeError for numbers that are not possible."""
        for name, value in (("context", self.context), ("batch", self.batch), ("gpus", self.count)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise RecipeError(f"{name} is {value!r}", f"give a whole number of at least 1 with --{name}")


@dataclass(frozen=True)
class Row:
    """One variant on one card, or on several."""

    variant: FormatVariant
    card: Card
    modelled: Modelled
    max_context: int
    measured: tuple[Mapping[str, Any], ...] = ()

    @property
    def baseline(self) -> bool:
        return (self.card.name, self.variant.label) == (BASELINE_CARD, BASELINE_FORMAT)

    def as_dict(self) -> dict[str, Any]:
        found = self.modelled
        return {
            "gpu": self.card.name,
            "kind": self.card.kind,
            "tensor_parallel": found.gpus,
            "format": self.variant.label,
            "file_format": self.variant.format,
            "bits": self.variant.bits,
            "group_size": self.variant.group_size,
            "baseline": self.baseline,
            "fits": found.fits,
            "weights_bytes": found.weights_bytes,
            "kv_bytes": found.kv_bytes,
            "activation_bytes": found.activation_bytes,
            "overhead_bytes": found.runtime_bytes,
            "total_bytes": found.total_bytes,
            "usable_bytes": found.usable_bytes,
            "max_context": self.max_context,
            "max_batch": found.max_batch,
            "prefill_tokens_per_second": found.prefill_tokens_per_second,
            "decode_tokens_per_second": found.decode_tokens_per_second,
            "ttft_seconds": found.ttft_seconds,
            "source": roofline.SOURCE,
            "measured": [dict(one) for one in self.measured],
        }


@dataclass(frozen=True)
class Fit:
    """model: what it is; load: what is asked of it; buy: the smallest hardware of each kind for each variant."""

    model: Mapping[str, Any]
    load: Mapping[str, Any]
    rows: tuple[Row, ...]
    buy: tuple[Row, ...]
    notes: tuple[str, ...]
    records: Records | None = None

    def as_dict(self) -> dict[str, Any]:
        keys = ("format", "kind", "gpu", "tensor_parallel", "total_bytes", "max_context", "decode_tokens_per_second")
        return {
            "model": dict(self.model),
            **self.load,
            "rows": [row.as_dict() for row in self.rows],
            "buy": [{key: row.as_dict()[key] for key in keys} for row in self.buy],
            "fitted": [one.as_dict() for one in self.records.fitted] if self.records else [],
            "assumptions": roofline.assumptions(),
            "notes": list(self.notes),
        }


def fit(model: str | Path, wanted: FitOptions | None = None) -> Fit:
    """Every wanted variant of a model on every wanted card.

    Raises RecipeError for what is not known or cannot be asked, CheckpointError where the model is not found or its
    config lacks a size.
    """
    wanted = wanted or FitOptions()
    found, name = outline(model)
    longest = found.config.get("max_position_embeddings")
    context = _context(wanted, longest if isinstance(longest, int) else None)
    table, chosen, notes = _cards(wanted)
    _check_split(found, wanted.count)
    weights = _weights(found, wanted)
    sized = {variant: _sizes(found, made, wanted.kv_bits) for variant, made in weights.items()}
    base = next(iter(sized))
    records = _records(found, wanted, table)
    if records is not None:
        more = {} if wanted.narrowed else records.variants
        sized |= {v: _sizes(found, made, wanted.kv_bits) for v, made in more.items() if v not in sized}
        notes += records.notes
        here = [card for card in records.cards if card not in chosen]
        chosen = [*chosen, *here] if wanted.named else records.cards or chosen

    def row(variant: FormatVariant, card: Card, count: int) -> Row:
        of = sized[variant]
        efficiency = records.efficiency(card, variant.backend) if records else USUAL
        prompt = min(PROMPT, max(1, context // 2))
        made = roofline.model(of, card, prompt, context - prompt, wanted.batch, gpus=count, efficiency=efficiency)
        reached = made.max_context if not isinstance(longest, int) else min(made.max_context, longest)
        return Row(variant, card, made, reached, records.beside(card, variant) if records and count == 1 else ())

    rows = [row(base, table[BASELINE_CARD], 1)] if base.label == BASELINE_FORMAT else []
    shown = [variant for variant in sized if _asked(variant, wanted)]
    rows += [
        row(v, card, wanted.count)
        for card in chosen
        for v in shown
        if (card.name, v.label, wanted.count) != (BASELINE_CARD, BASELINE_FORMAT, 1)
    ]
    buy = _buy(found, shown, table, row, wanted.count)
    about = {
        "name": name,
        "architecture": found.config.get("model_type"),
        "parameters": found.parameters,
        "dtype": found.dtype,
        "layers": size(found.config, "num_hidden_layers"),
        "kv_bytes_per_token": sized[base].kv_bytes,
        "max_positions": longest,
    }
    load = {"context": context, "batch": wanted.batch, "kv_bits": wanted.kv_bits, "tensor_parallel": wanted.count}
    return Fit(about, load, tuple(rows), tuple(buy), tuple(filter(None, (found.note, *notes))), records)


def _context(wanted: FitOptions, longest: int | None) -> int:
    if wanted.context is None:
        return min(DEFAULT_CONTEXT, longest or DEFAULT_CONTEXT)
    if longest is not None and wanted.context > longest:
        raise RecipeError(
            f"context {wanted.context} is longer than the model's {longest} positions", f"use --context {longest}"
        )
    return wanted.context


def _cards(wanted: FitOptions) -> tuple[Mapping[str, Card], list[Card], list[str]]:
    """The table, the cards of it that are wanted, and what is to be said of them."""
    table = cards() if wanted.hardware is None else with_own(wanted.hardware)
    chosen, notes = [card for name in wanted.gpus for card in matching(name, table)], list[str]()
    if wanted.hardware is not None and not wanted.gpus:
        chosen += [card for card in table.values() if cards().get(card.name) != card]
    if wanted.detect:
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


def _weights(model: Inventory, wanted: FitOptions) -> dict[FormatVariant, VariantWeights]:
    """Of the wanted variants, the floats first. Raises RecipeError where none is known or can hold the model."""
    floats = [variant for variant in variants() if variant.label == BASELINE_FORMAT]
    if not wanted.narrowed:
        return held(model, floats) | usual(model)
    known = {name for v in variants() for name in (v.label, v.format)}
    absent = [name for name in wanted.formats if name.lower() not in known]
    if absent:
        raise RecipeError(f"there is no format {absent[0]!r}", f"choose from {', '.join(sorted({*_formats()}))}")
    named = [variant for variant in variants() if _asked(variant, wanted)]
    found = held(model, named)
    if not found:
        said = "no variant has these formats and bits" if not named else "no such variant can hold this model"
        raise RecipeError(said, "ask for other --format or --bits")
    return held(model, floats) | found


def _formats() -> list[str]:
    return [variant.format for variant in variants()] + [BASELINE_FORMAT]


def _asked(variant: FormatVariant, wanted: FitOptions) -> bool:
    named = not wanted.formats or any(name.lower() in (variant.label, variant.format) for name in wanted.formats)
    return named and (not wanted.bits or variant.bits in wanted.bits)


def _records(model: Inventory, wanted: FitOptions, table: Mapping[str, Card]) -> Records | None:
    if not wanted.records:
        return None
    from r1quant.jobs.fit.records import read_records

    halves = roofline.sized(model, 2 * model.parameters, 2 * (model.parameters - _unread(model)))
    return read_records(wanted.records, model, halves, table.values())


def _unread(model: Inventory) -> int:
    """Numbers of an embedding that is not the head too."""
    return 0 if model.tied else sum(part.numbers for part in model.parts if part.role == "embedding")


def _sizes(model: Inventory, weights: VariantWeights, kv_bits: int) -> Sizes:
    return roofline.sized(model, weights.total, weights.total - weights.embedding, kv_bits, weights.experts)


def _buy(
    model: Inventory, shown: Sequence[FormatVariant], table: Mapping[str, Card], row: Any, count: int
) -> list[Row]:
    """For each variant and each kind of hardware the smallest that holds it, several cards where one does not."""
    heads, found = size(model.config, "num_attention_heads"), []
    ordered = sorted(table.values(), key=lambda card: (card.memory_bytes, card.bandwidth))
    kinds = dict.fromkeys(card.kind for card in table.values())
    for variant, kind in itertools.product(shown, kinds):
        counts = (1,) if kind in ALONE else tuple(n for n in TOGETHER if heads % n == 0 and n >= count)
        tried = (row(variant, card, n) for n in counts for card in ordered if card.kind == kind)
        holding = next((made for made in tried if made.modelled.fits), None)
        if holding is not None:
            found.append(holding)
    return found

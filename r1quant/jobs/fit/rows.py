"""One variant of a model on one card, or on several: what is modelled, and what was measured beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from r1quant.core.json import JsonObject
from r1quant.hardware import roofline
from r1quant.hardware.cards import Card
from r1quant.hardware.roofline import Modelled
from r1quant.planning.recommend import Capacities
from r1quant.planning.variants import FormatVariant

if TYPE_CHECKING:
    from r1quant.jobs.fit.records import MeasuredLoad, Records

BASELINE_CARD, BASELINE_FORMAT = "A100 40GB", "fp16"


@dataclass(frozen=True)
class Row:
    """One variant on one card, or on several."""

    variant: FormatVariant
    card: Card
    modelled: Modelled
    max_context: int
    measured: tuple[MeasuredLoad, ...] = ()

    @property
    def baseline(self) -> bool:
        return (self.card.name, self.variant.label) == (BASELINE_CARD, BASELINE_FORMAT)

    def as_dict(self) -> JsonObject:
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
            "measured": [one.as_dict() for one in self.measured],
        }


@dataclass(frozen=True)
class Rows:
    """Makes rows out of what variants need and what was measured, if there are records."""

    capacities: Capacities
    records: Records | None = None

    def row(self, variant: FormatVariant, card: Card, count: int) -> Row:
        modelled = self.capacities.modelled(variant, card, count)
        measured = self.records.beside(card, variant) if self.records and count == 1 else ()
        return Row(variant, card, modelled, self.capacities.longest(modelled), measured)

"""The records of a report, grouped by the quantized model that they describe. It does not know where they lie."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from r1quant.records.bench import Bench
from r1quant.records.quantization import Quantization, QuantizeRun
from r1quant.records.record import Record
from r1quant.records.verification import Verification
from r1quant.reporting import untrusted

KINDS: tuple[type[Record], ...] = (Quantization, QuantizeRun, Verification, Bench)


@dataclass
class VariantRecords:
    """The records of one quantized model, by kind; several of a kind in the order in which they were given."""

    name: str
    quantization: Quantization | None = None
    run: QuantizeRun | None = None
    verifications: list[Verification] = field(default_factory=list)
    benches: list[Bench] = field(default_factory=list)

    @property
    def model(self) -> str | None:
        """What it was made from."""
        names = [self.quantization.model if self.quantization else None]
        names += [*(one.model for one in self.verifications), *(one.model for one in self.benches)]
        return next((untrusted.short(name) for name in names if name), None)

    @property
    def bits_per_weight(self) -> float | None:
        """Stored bits of a quantized weight, with its share of scales and zero points."""
        return self.quantization.bits_per_weight if self.quantization else None

    def add(self, record: Record) -> None:
        """Of a quantization the first counts, of runs the one that has predictions; measurements count once each."""
        match record:
            case Quantization():
                self.quantization = self.quantization or record
            case QuantizeRun():
                fuller = record.predicted is not None and self.run is not None and self.run.predicted is None
                self.run = record if self.run is None or fuller else self.run
                self.quantization = self.quantization or record.record
            case Verification() if record not in self.verifications:
                self.verifications.append(record)
            case Bench() if record not in self.benches:
                self.benches.append(record)


def grouped(records: Iterable[tuple[str, Record]]) -> list[VariantRecords]:
    """One variant for every name of an output, those of most bits first. Each record has the name of its folder.

    What was measured of the GGUF file in an output of quantize was measured of the output.
    """
    variants: dict[str, VariantRecords] = {}
    known = list(records)
    whole = {_name(folder, record) for folder, record in known if isinstance(record, Quantization | QuantizeRun)}
    for folder, record in known:
        name = _name(folder, record)
        above = _folder(record)
        name = above if above in whole else name
        variants.setdefault(name, VariantRecords(name)).add(record)
    return sorted(variants.values(), key=lambda variant: (-(variant.bits_per_weight or 0), variant.name))


def _name(folder: str, record: Record) -> str:
    out = record.out if isinstance(record, QuantizeRun | Verification | Bench) else ""
    return untrusted.short(out or folder).rpartition("/")[2] or "artifact"


def _folder(record: Record) -> str:
    """The name of the folder of a GGUF file that was measured; empty if it is none, or lies in none."""
    out = record.out if isinstance(record, Verification | Bench) else ""
    place = (out or "").replace("\\", "/").rpartition("/")[0] if (out or "").endswith(".gguf") else ""
    return untrusted.short(place).rpartition("/")[2]


def models_of(variants: Sequence[VariantRecords]) -> list[str]:
    """What the variants were made from, each name once."""
    return sorted({variant.model for variant in variants if variant.model})

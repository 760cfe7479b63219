"""Where the numbers of a variant come from: names and values out of its records, for the folded tables of a report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from r1quant.records.bench import Bench
from r1quant.records.quantization import Quantization
from r1quant.records.verification import Verification
from r1quant.records.writing import as_json
from r1quant.reporting import untrusted
from r1quant.reporting.variants import VariantRecords

Pair = tuple[str, object]


def provenance(variant: VariantRecords) -> tuple[tuple[str, str], ...]:
    """Pairs of a name and a value: hashes, recipe, text, versions. What was not recorded is left out."""
    pairs = [*_quantization(variant.quantization or Quantization())]
    pairs += [pair for record in variant.verifications for pair in _verification(record)]
    pairs += [pair for record in variant.benches for pair in _bench(record)]
    shown = {untrusted.plain(name): _shown(value) for name, value in pairs}
    return tuple((name, value) for name, value in shown.items() if value)


def _quantization(record: Quantization) -> Iterator[Pair]:
    for name in ("model", "architecture", "config", "tokenizer", "source"):
        yield name, getattr(record, name)
    for name in ("weights", "recipe", "compute", "calibration", "environment"):
        yield from _parts(name, getattr(record, name))
    for change in record.changed_on_resume or ():
        yield f"changed on resume: {change.name}", f"{change.before} -> {change.after}"


def _verification(record: Verification) -> Iterator[Pair]:
    yield from _parts("verify, hashes", record.hashes)
    yield from _parts("verify, text", record.scores.text if record.scores else None)
    yield from _parts("verify, environment", record.environment)
    if record.aime is not None:
        for name in ("set", "source", "sha256"):
            yield f"verify, problems: {name}", getattr(record.aime.asked, name)
    for name in ("backend", "baseline_backend", "dtype"):
        yield f"verify, {name}", getattr(record, name)


def _bench(record: Bench) -> Iterator[Pair]:
    yield from _parts("bench", record.protocol)
    yield from _parts("bench, environment", record.environment)


def _parts(name: str, part: object) -> Iterator[Pair]:
    """The fields of a record type, or the entries of an object, one level deep."""
    entries = part if isinstance(part, Mapping) else as_json(part) if part is not None else {}
    yield from ((f"{name}: {key}", value) for key, value in entries.items())


def _shown(value: object) -> str:
    """Empty for what has no short form. Paths are shown by their last part."""
    if isinstance(value, str):
        return untrusted.short(value) if "/" in value or "\\" in value else untrusted.plain(value)
    return f"{value:.12g}" if isinstance(value, float) else str(value) if isinstance(value, int) else ""

"""The kinds of record, by what their JSON calls itself."""

from __future__ import annotations

from r1quant.records.bench import Bench
from r1quant.records.export import Export
from r1quant.records.quantization import Quantization, QuantizeRun
from r1quant.records.record import Record, schema_of
from r1quant.records.verification import Verification

KINDS: tuple[type[Record], ...] = (Quantization, QuantizeRun, Export, Verification, Bench)
SCHEMAS = {schema: kind for kind in KINDS for schema in (kind.SCHEMA, *kind.OLDER)}


def read_record(value: object, lenient: bool = False) -> Record | None:
    """A record of any kind; None for what is none. Raises RecordError if its kind is known and it does not fit it."""
    kind = SCHEMAS.get(schema_of(value) or "")
    return None if kind is None else kind.from_json(value, lenient)

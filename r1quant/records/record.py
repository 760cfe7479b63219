"""What every kind of record has: a schema, JSON and back, and numbers by name. The types are in the modules beside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from r1quant.core.json import JsonObject
from r1quant.errors import RecordError
from r1quant.records import reading, writing

R = TypeVar("R", bound="Record")


class Record:
    """Mixed into a frozen dataclass.

    SCHEMA  what `schema` says in the JSON of this kind of record
    OLDER   schemas that are read as well; what they lack has a default
    """

    SCHEMA: ClassVar[str]
    OLDER: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def from_json(cls: type[R], value: object, lenient: bool = False) -> R:
        """Parsed JSON, which is not trusted. Raises RecordError; see `reading` for what lenient lets pass."""
        schema = value.get("schema") if isinstance(value, Mapping) else None
        if schema not in (cls.SCHEMA, *cls.OLDER):
            said = f"says {reading.clean(schema)[:40]!r}" if isinstance(schema, str) else "is missing"
            raise RecordError(f"this is no record of the kind {cls.SCHEMA}: its schema {said}", reading.HINT)
        return reading.read(cls, value, lenient)

    def as_dict(self) -> JsonObject:
        """The record as it is written."""
        return writing.as_json(self)

    def numbers(self) -> Mapping[str, float]:
        """Every measured number by its dotted path, such as kl.mean and kl.mean.low; what was not measured has none."""
        return writing.numbers(self)

    @classmethod
    def number_paths(cls) -> tuple[str, ...]:
        """Every path that `numbers` of such a record can have; `*` stands for a name that only the run knows."""
        return writing.number_paths(cls)


def schema_of(value: Any) -> str | None:
    """What a parsed file says it is; None if it says nothing."""
    schema = value.get("schema") if isinstance(value, Mapping) else None
    return schema if isinstance(schema, str) else None

"""How the fields of a record type stand in JSON: by their own names, unless `stored` says otherwise beside a field.

A record type is a frozen dataclass whose fields have one of these types, or are optional (`T | None`):

    float             a finite number                  Interval          [low, high]
    int               a whole number of at least 0     another record    an object
    bool, str         themselves                       tuple[T, ...]     a list
    Setting           the value of an option           Mapping[str, T]   an object with any keys
    Any               any JSON, for what r1quant did not write itself, such as config.json
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias, Union, get_args, get_origin, get_type_hints

Setting: TypeAlias = bool | int | float | str | tuple[str, ...] | tuple[int, ...] | None
Settings: TypeAlias = Mapping[str, Setting]
MISSING = dataclasses.MISSING


@dataclass(frozen=True)
class Stored:
    """Where a field is stored otherwise than under its name.

    key       its name in JSON; the field's own if empty
    inline    the keys of the part stand among those of the record; all of them are missing if the part is None
    omit      None is left out instead of written as null
    keys      of a mapping: the keys that it may have; any if empty
    entries   of a list: the most entries that it may have; any number if 0
    measured  whether its numbers are measurements, on which a gate may be set
    """

    key: str = ""
    inline: bool = False
    omit: bool = False
    keys: tuple[str, ...] = ()
    entries: int = 0
    measured: bool = True


@dataclass(frozen=True)
class Member:
    """A field of a record type: its name, its key in JSON, its type, the default (`MISSING` if there is none)."""

    name: str
    key: str
    kind: Any
    default: Any
    stored: Stored


def stored(
    key: str = "",
    *,
    inline: bool = False,
    omit: bool = False,
    keys: tuple[str, ...] = (),
    entries: int = 0,
    measured: bool = True,
) -> Mapping[str, Stored]:
    """The metadata of a dataclass field: `start: int = field(metadata=stored("from"))`. Arguments as in `Stored`."""
    return {"stored": Stored(key, inline, omit, keys, entries, measured)}


@cache
def members(kind: type) -> tuple[Member, ...]:
    """The fields of a record type in order."""
    hints = get_type_hints(kind)
    found = []
    for field in dataclasses.fields(kind):
        how = field.metadata.get("stored", Stored())
        default = field.default if field.default_factory is MISSING else field.default_factory()
        found.append(Member(field.name, how.key or field.name, hints[field.name], default, how))
    return tuple(found)


def optional(kind: Any) -> Any:
    """T for T | None; None for a type that is not optional, and for a Setting."""
    if get_origin(kind) not in (Union, types.UnionType):
        return None
    inner = [part for part in get_args(kind) if part is not type(None)]
    return inner[0] if len(inner) == 1 and len(get_args(kind)) == 2 else None


def is_setting(kind: Any) -> bool:
    """Whether a type is `Setting`."""
    return get_origin(kind) in (Union, types.UnionType) and optional(kind) is None


def element(kind: Any) -> Any:
    """T for tuple[T, ...] and for Mapping[str, T]; None for other types."""
    origin = get_origin(kind)
    return get_args(kind)[0] if origin is tuple else get_args(kind)[1] if origin is Mapping else None


def is_record(kind: Any) -> bool:
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)

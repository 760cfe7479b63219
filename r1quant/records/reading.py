"""Reads record types out of JSON that anybody may have written: a typed value or a RecordError comes of it.

Strict reading refuses the first value that is not what its type says. Lenient reading takes such a value for missing:
its default stands in, or the part that needs it is missing too; entries of lists and objects are left out, and texts
are cleaned. Unknown keys are ignored in both.

Types bound the depth; texts, lists and objects are bounded here, and whole numbers fit 63 bits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any, NoReturn, TypeVar, get_origin

from r1quant.core.json import JsonObject
from r1quant.errors import RecordError
from r1quant.records.fields import MISSING, Member, element, is_record, is_setting, members, optional
from r1quant.records.interval import Interval

T = TypeVar("T")
LONGEST = 4096  # characters of a text
MOST = 100_000  # entries of a list or an object
DEEPEST = 32  # levels of JSON whose types are not known
LARGEST = 1 << 63
# Line ends and other control characters, halves of surrogate pairs, marks that reverse the order of what follows.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def read(kind: type[T], value: object, lenient: bool = False) -> T:
    """A record type, or any other that `fields` names, from parsed JSON. Raises RecordError, which names the place."""
    found: T = _Reader(lenient).value(kind, value, "")
    return found


class _Reader:
    """Reads one value of any type at a dotted path, which only the errors need."""

    def __init__(self, lenient: bool) -> None:
        self.lenient = lenient

    def value(self, kind: Any, value: object, path: str) -> Any:
        scalar = SCALARS.get(kind)
        if scalar is not None:
            return scalar(self, value, path)
        if is_setting(kind):
            return self.setting(value, path)
        inner = optional(kind)
        if inner is not None:
            return None if value is None else self.or_none(inner, value, path)
        if is_record(kind):
            return self.record(kind, value, path)
        if element(kind) is None:
            raise TypeError(f"{path} has the type {kind}, which no record can have")
        return self.entries(kind, value, path)

    def or_none(self, kind: Any, value: object, path: str) -> Any:
        try:
            return self.value(kind, value, path)
        except RecordError:
            if not self.lenient:
                raise
            return None

    def record(self, kind: Any, value: object, path: str) -> Any:
        if not isinstance(value, Mapping):
            _refuse(path, "an object", value)
        return kind(**{member.name: self.member(member, value, path) for member in members(kind)})

    def member(self, member: Member, content: JsonObject, path: str) -> Any:
        inner = optional(member.kind)
        if member.stored.inline:
            absent = inner is not None and not any(key in content for key in _keys(inner))
            return None if absent else self.value(member.kind, content, path)
        place = f"{path}.{member.key}".lstrip(".")
        missing = member.key not in content
        try:
            if not missing:
                return self.value(member.kind, content[member.key], place)
        except RecordError:
            if not self.lenient or member.default is MISSING:
                raise
        if member.default is not MISSING:
            return member.default
        if inner is None:
            raise RecordError(f"{_shown(place)} is missing", HINT)
        return None

    def entries(self, kind: Any, value: object, path: str) -> Any:
        """tuple[T, ...] as a tuple, Mapping[str, T] as a dict."""
        pairs: Iterable[tuple[str, object]]
        listed = get_origin(kind) is tuple
        if listed and isinstance(value, list | tuple):
            size, pairs = len(value), ((str(place), entry) for place, entry in enumerate(value))
        elif not listed and isinstance(value, Mapping):
            size, pairs = len(value), value.items()
        else:
            _refuse(path, "a list" if listed else "an object", value)
        if size > MOST and not self.lenient:
            raise RecordError(f"{_shown(path)} has {size} entries, more than any record", HINT)
        found = {}
        for key, entry in islice(pairs, MOST):
            try:
                name = self.text(key, f"a key of {_shown(path)}")
                found[name] = self.value(element(kind), entry, f"{path}.{name}".lstrip("."))
            except RecordError:
                if not self.lenient:
                    raise
        return tuple(found.values()) if listed else found

    def number(self, value: object, path: str) -> float:
        found = finite(value)
        return _refuse(path, "a finite number", value) if found is None else found

    def count(self, value: object, path: str) -> int:
        found = whole(value)
        return _refuse(path, "a whole number of at least 0", value) if found is None or found < 0 else found

    def flag(self, value: object, path: str) -> bool:
        return value if isinstance(value, bool) else _refuse(path, "true or false", value)

    def text(self, value: object, path: str) -> str:
        if not isinstance(value, str):
            _refuse(path, "a text", value)
        if self.lenient:
            return clean(value)
        if len(value) > LONGEST:
            raise RecordError(f"{_shown(path)} has {len(value)} characters, more than any text of a record", HINT)
        if UNPRINTABLE.search(value):
            raise RecordError(f"{_shown(path)} has control characters", HINT)
        return value

    def interval(self, value: object, path: str) -> Interval:
        bounds = [finite(bound) for bound in value] if isinstance(value, list | tuple) and len(value) == 2 else []
        if not bounds or bounds[0] is None or bounds[1] is None or bounds[0] > bounds[1]:
            _refuse(path, "an interval [low, high]", value)
        return Interval(bounds[0], bounds[1])

    def setting(self, value: object, path: str) -> Any:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return self.text(value, path)
        if isinstance(value, list | tuple) and all(isinstance(entry, str) for entry in value):
            return self.value(tuple[str, ...], value, path)
        if isinstance(value, list | tuple):
            return self.value(tuple[int, ...], value, path)
        known = whole(value) if isinstance(value, int) else finite(value)
        return _refuse(path, "the value of an option", value) if known is None else known

    def json(self, value: object, path: str, depth: int = 0) -> Any:
        if depth > DEEPEST:
            raise RecordError(f"{_shown(path)} is nested more than {DEEPEST} deep", HINT)
        if isinstance(value, list | tuple | Mapping) and len(value) > MOST:
            raise RecordError(f"{_shown(path)} has {len(value)} entries, more than any record", HINT)
        if isinstance(value, Mapping):
            return {
                self.text(key, f"a key of {path}"): self.json(entry, f"{path}.{key}", depth + 1)
                for key, entry in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.json(entry, f"{path}.{place}", depth + 1) for place, entry in enumerate(value)]
        return self.setting(value, path)


HINT = "write the record anew with r1quant, or leave it out"
SCALARS: Mapping[Any, Callable[[_Reader, object, str], Any]] = {
    float: _Reader.number,
    int: _Reader.count,
    bool: _Reader.flag,
    str: _Reader.text,
    Interval: _Reader.interval,
    Any: _Reader.json,
}
NAMES = {
    dict: "an object",
    list: "a list",
    str: "a text",
    bool: "true or false",
    int: "a huge number",
    type(None): "null",
}


def finite(value: object) -> float | None:
    """A finite number as a float; None for anything else, and for true and false."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        known = float(value)
    except OverflowError:
        return None
    return known if math.isfinite(known) else None


def whole(value: object) -> int | None:
    """A whole number that fits 63 bits and a sign; None for anything else, and for true and false."""
    known = finite(value)
    if known is None or not known.is_integer() or abs(known) >= LARGEST:
        return None
    return value if isinstance(value, int) else int(known)


def clean(value: str) -> str:
    """A text on one line without unprintable characters, at most `LONGEST` long."""
    return UNPRINTABLE.sub("", " ".join(value[: 2 * LONGEST].split()))[:LONGEST]


def _refuse(path: str, wanted: str, value: object) -> NoReturn:
    if isinstance(value, float) or (isinstance(value, int) and abs(value) < LARGEST and not isinstance(value, bool)):
        what = repr(value)
    else:
        what = NAMES.get(type(value), "something else")
    raise RecordError(f"{_shown(path)} is {what}, not {wanted}", HINT)


def _shown(path: str) -> str:
    return path[:100] or "the record"


def _keys(kind: Any) -> list[str]:
    """The keys that a record type has in JSON, those of its inline parts included."""
    found = []
    for member in members(kind):
        inner = optional(member.kind) or member.kind
        found += _keys(inner) if member.stored.inline else [member.key]
    return found

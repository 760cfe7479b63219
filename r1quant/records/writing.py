"""Record types as JSON, and their numbers by dotted path. The inverse of `reading`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from r1quant.core.json import JsonObject
from r1quant.records.fields import Member, element, is_record, members, optional
from r1quant.records.interval import Interval

LOW, HIGH, CI95 = "low", "high", "_ci95"


def as_json(part: Any) -> JsonObject:
    """A record type as a new dictionary, ready for json.dumps. Whole records say their schema first."""
    schema = getattr(part, "SCHEMA", None)
    found: dict[str, object] = {} if schema is None else {"schema": schema}
    for member in _members_of(part):
        value = getattr(part, member.name)
        if value is None and (member.stored.omit or member.stored.inline):
            continue
        if member.stored.inline:
            found |= as_json(value)
        else:
            found[member.key] = _written(value)
    return found


def numbers(part: Any) -> dict[str, float]:
    """Every measured number by its dotted path: kl.mean, and of kl.mean_ci95 kl.mean.low and kl.mean_ci95.low.

    What is None has none.
    """
    return dict(_numbers(part, ""))


def number_paths(kind: type, prefix: str = "") -> tuple[str, ...]:
    """The paths that `numbers` of such a record can have, in the order of its fields; `*` stands for any key.

    prefix  the path of this part in the whole record
    """
    return tuple(_paths(kind, prefix))


def _members_of(part: Any) -> tuple[Member, ...]:
    kind: Any = type(part)
    return members(kind)


def _written(value: Any) -> object:
    if isinstance(value, Interval):
        return list(value)
    if is_record(type(value)):
        return as_json(value)
    if isinstance(value, Mapping):
        return {key: _written(entry) for key, entry in value.items()}
    return [_written(entry) for entry in value] if isinstance(value, tuple | list) else value


def _numbers(value: Any, path: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, bool):
        return
    if isinstance(value, int | float):
        yield path, float(value)
    elif isinstance(value, Interval):
        for whole, end in _interval_paths(path):
            yield whole, value.low if end == LOW else value.high
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _numbers(entry, _joined(path, key))
    elif isinstance(value, tuple):
        for place, entry in enumerate(value):
            yield from _numbers(entry, _joined(path, str(place))) if is_record(type(entry)) else ()
    elif is_record(type(value)):
        for member in _members_of(value):
            if member.stored.measured:
                inner = path if member.stored.inline else _joined(path, member.key)
                yield from _numbers(getattr(value, member.name), inner)


def _paths(kind: Any, path: str) -> Iterator[str]:
    kind = optional(kind) or kind
    if kind in (int, float):
        yield path
    elif kind is Interval:
        yield from (whole for whole, _ in _interval_paths(path))
    elif is_record(kind):
        for member in members(kind):
            if member.stored.measured:
                keys = member.stored.keys or tuple(map(str, range(member.stored.entries)))
                inner = path if member.stored.inline else _joined(path, member.key)
                yield from _member_paths(member.kind, inner, keys)


def _member_paths(kind: Any, path: str, keys: tuple[str, ...]) -> Iterator[str]:
    inner = element(optional(kind) or kind)
    if inner is None:
        yield from _paths(kind, path)
    elif is_record(inner) or element(inner) is not None:
        for key in keys or ("*",):
            yield from _member_paths(inner, _joined(path, key), ())


def _interval_paths(path: str) -> list[tuple[str, str]]:
    """delta_ci95 -> delta.low, delta.high, delta_ci95.low, delta_ci95.high, each with its end."""
    names = dict.fromkeys((path.removesuffix(CI95), path))
    return [(f"{name}.{end}", end) for name in names for end in (LOW, HIGH)]


def _joined(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key

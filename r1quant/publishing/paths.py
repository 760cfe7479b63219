"""Records without the places where things lay on the machine that made them."""

from __future__ import annotations

import re
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, TypeVar

from r1quant.records.record import Record

R = TypeVar("R", bound=Record)
ELSEWHERE = re.compile(r"(?:/|~/|\.\./|[A-Za-z]:[\\/])\S*")


def public_record(record: R) -> R:
    """The same record; what it does not hold any more without its paths is missing."""
    return type(record).from_json(public(record.as_dict()), lenient=True)


def public(value: Any) -> Any:
    """JSON in which a string that is a path out of the folder is only its last part."""
    if isinstance(value, dict):
        return {key: public(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [public(inner) for inner in value]
    if isinstance(value, str) and ELSEWHERE.fullmatch(value):
        kind = PureWindowsPath if "\\" in value or value[1:2] == ":" else PurePosixPath
        return kind(value).name or "."
    return value

"""Values of any record type, and JSON of any kind, drawn by hypothesis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_origin

from hypothesis import strategies as st

from r1quant.records.fields import element, is_record, is_setting, members, optional
from r1quant.records.interval import Interval
from r1quant.records.reading import LARGEST

TEXTS = st.text(
    st.characters(
        exclude_categories=["Cc", "Cs", "Zl", "Zp"],
        exclude_characters="\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069",
    ),
    max_size=12,
)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
COUNTS = st.integers(0, LARGEST - 1025)  # the nearest float is still below the limit
INTERVALS = st.tuples(NUMBERS, NUMBERS).map(lambda ends: Interval(min(ends), max(ends)))
LISTS = st.lists(TEXTS).map(tuple) | st.lists(COUNTS).map(tuple)
SETTINGS = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | NUMBERS | TEXTS | LISTS
KEYS = ("schema", "kl", "mean", "mean_ci95", "aime", "health", "rows", "options", "gates", "linears", "baseline")
# Also what Python's parser takes for JSON though it is none, and what no record may hold.
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.just(10**400)
    | st.just("\ud800")
)
JSON = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), inner, max_size=5)
    ),
    max_leaves=12,
)
SCALARS: dict[Any, st.SearchStrategy[Any]] = {
    float: NUMBERS,
    int: COUNTS,
    bool: st.booleans(),
    str: TEXTS,
    Interval: INTERVALS,
}


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Any value of a record type, or of one that its fields may have."""
    if kind in SCALARS:
        return SCALARS[kind]
    if kind is Any:
        leaf = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | NUMBERS | TEXTS
        return st.recursive(leaf, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2))
    if is_setting(kind):
        return SETTINGS
    inner = optional(kind)
    if inner is not None:
        return st.none() | values(inner)
    if is_record(kind):
        return st.builds(kind, **{member.name: values(member.kind) for member in members(kind)})
    if get_origin(kind) is Mapping:
        return st.dictionaries(TEXTS, values(element(kind)), max_size=2)
    return st.lists(values(element(kind)), max_size=2).map(tuple)

"""Options that are declared once: what a field says of itself is what is checked, read from texts, and shown."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1quant.core.options import OneOf, Size, Text, Within, check, nbytes, option, options_of, parsed
from r1quant.errors import RecipeError


@dataclass(frozen=True)
class Sample:
    """One option of each kind."""

    count: int = option(3, "Numbers", "How many.", Within(1))
    share: float = option(1.0, "Numbers", "Which part.", Within(0, 1, above=True))
    bits: int = option(4, "Numbers", "How wide.", OneOf((2, 3, 4)))
    size: int | None = option(None, "Numbers", "How large.", Size())
    widths: tuple[int, ...] = option((), "Numbers", "Which widths.", OneOf((4, 8)))
    name: str | None = option(None, "Names", "What it is called.", Text("give a name", pattern="[a-z]+"))
    names: tuple[str, ...] = option((), "Names", "All names.", Text("give names", commas=True), flag="--called")
    place: Path | None = option(None, "Names", "Where it is.")
    kind: Literal["a", "b"] = option("a", "Names", "Which kind.")
    sure: bool = option(True, "Names", "Whether.", flag="--sure/--unsure")
    inner: int = 0

    def __post_init__(self) -> None:
        check(self)


def test_types_are_taken_apart() -> None:
    found = {one.name: one for one in options_of(Sample)}
    assert list(found) == ["count", "share", "bits", "size", "widths", "name", "names", "place", "kind", "sure"]
    assert {name: one.kind for name, one in found.items()} == {
        "count": int, "share": float, "bits": int, "size": int, "widths": int, "name": str, "names": str,
        "place": Path, "kind": str, "sure": bool,
    }  # fmt: skip
    assert [name for name, one in found.items() if one.optional] == ["size", "name", "place"]
    assert [name for name, one in found.items() if one.many] == ["widths", "names"]
    assert found["kind"].declaration.values == OneOf(("a", "b"))
    assert (found["names"].flags, found["names"].label) == (("--called",), "called")
    assert (found["sure"].flags, found["sure"].label) == (("--sure", "--unsure"), "sure")


@pytest.mark.parametrize(
    ("name", "value", "message", "hint"),
    [
        ("count", 0, "count is 0", "give a whole number of at least 1"),
        ("count", True, "count is True", "give a whole number of at least 1"),
        ("count", 1.0, "count is 1.0", "give a whole number of at least 1"),
        ("count", "many", "count is 'many'", "give a whole number of at least 1"),
        ("share", 0, "share is 0", "give a number above 0, at most 1"),
        ("share", float("nan"), "share is nan", "give a number above 0, at most 1"),
        ("share", float("inf"), "share is inf", "give a number above 0, at most 1"),
        ("bits", 5, "bits 5 is not supported", "choose from 2, 3, 4"),
        ("bits", 4.0, "bits 4.0 is not supported", "choose from 2, 3, 4"),
        ("size", "big", "size is 'big'", "give a size such as 5GB or 700MB"),
        ("size", 0, "size is 0", "give a size such as 5GB or 700MB"),
        ("widths", (4, 5), "widths 5 is not supported", "choose from 4, 8"),
        ("widths", [4], "widths is [4]", "give a tuple of values"),
        ("name", "", "name '' is not supported", "give a name"),
        ("name", "A", "name 'A' is not supported", "give a name"),
        ("names", ("a", " "), "called is ' '", "give names"),
        ("place", 3, "place is 3", "give a name"),
        ("kind", "c", "kind 'c' is not supported", "choose from a, b"),
        ("kind", ["a"], "kind ['a'] is not supported", "choose from a, b"),
        ("sure", 1, "sure is 1", "give true or false"),
        ("sure", None, "sure is None", "give true or false"),
    ],
)
def test_what_is_not_possible_is_said_in_two_lines(name: str, value: object, message: str, hint: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Sample(**{name: value})  # type: ignore[arg-type]
    assert (caught.value.message, caught.value.hint) == (message, hint)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("count", "12", 12),
        ("count", "-1", -1),
        ("count", "²", "²"),
        ("count", "1.5", "1.5"),
        ("share", "0.5", 0.5),
        ("share", "half", "half"),
        ("size", "5GB", 5 * 10**9),
        ("size", "700", 700),
        ("size", "5XB", "5XB"),
        ("widths", "4, 8,4", (4, 8)),
        ("widths", ["4", "8,x"], (4, 8, "x")),
        ("widths", (4, 8, 4), (4, 8)),
        ("widths", 4, (4,)),
        ("names", "a,b", ("a", "b")),
        ("names", ("a", "b,"), ("a", "b", "")),
        ("place", "x/y", Path("x/y")),
        ("kind", "b", "b"),
        ("sure", True, True),
        ("other", "1", "1"),
    ],
)
def test_texts_are_read_as_the_type_says(name: str, text: object, value: object) -> None:
    assert parsed(Sample, {name: text}) == {name: value}


@given(st.integers(2, 10**15), st.sampled_from(["", "B", "kB", "MB", " GB", "KiB", "mib", "GiB"]))
def test_sizes(count: int, unit: str) -> None:
    factor = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
    assert nbytes(f"{count}{unit}") == int(float(count) * factor[unit.strip().lower()])


@given(st.text(max_size=20))
def test_no_text_is_too_strange(text: str) -> None:
    for one in options_of(Sample):
        value = one.parse(text)
        assert isinstance(value, tuple) is one.many
        try:
            one.check(value)
        except RecipeError as error:
            assert "\n" not in error.message and error.hint

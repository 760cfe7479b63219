"""Options as fields of frozen dataclasses. A field says which values it takes, its help, and the heading above it.

From this one declaration follow the check of a value, wherever it comes from, the option of the command line with its
default, and its line in the documentation. It knows no command line.
"""

from __future__ import annotations

import difflib
import math
import re
import types
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from r1quant.errors import RecipeError

T = TypeVar("T")
UNITS = {"": 1, "b": 1} | {f"{k}{i}b": (1024 if i else 1000) ** n for n, k in enumerate("kmgt", 1) for i in ("", "i")}
SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([a-z]*)", re.IGNORECASE)
FEW = 12  # values that a hint lists as they are
INTEGER = re.compile(r"[+-]?[0-9]+")


@dataclass(frozen=True)
class OneOf:
    """One of these values.

    others  what is possible too in some cases, and not offered
    commas  whether several are given in one, with commas between
    """

    values: Collection[str | int]
    others: tuple[str | int, ...] = ()
    commas: bool = False

    def __contains__(self, value: object) -> bool:
        return any(type(value) is type(known) and value == known for known in (*self.values, *self.others))

    @property
    def hint(self) -> str:
        return f"choose from {', '.join(map(str, self.values))}"

    def hint_for(self, value: object) -> str:
        """The hint, with those of many values that are spelled most like a wrong one before the others."""
        if len(self.values) <= FEW or not isinstance(value, str):
            return self.hint
        names = {str(known).casefold(): str(known) for known in self.values}
        near = [names[name] for name in difflib.get_close_matches(value.casefold(), names, 3)]
        return f"did you mean {' or '.join(near)}? {self.hint}" if near else self.hint


@dataclass(frozen=True)
class Within:
    """A number from `low` to `high`, both included; `above`: `low` itself is too little. need: why, in words."""

    low: float = 0
    high: float = math.inf
    above: bool = False
    unit: str = ""
    need: str = ""

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return (self.low < value if self.above else self.low <= value) and value <= self.high and math.isfinite(value)

    @property
    def hint(self) -> str:
        unit = f" of {self.unit}" if self.unit else ""
        if self.above:
            return f"{unit} above {self.low:g}" + ("" if math.isinf(self.high) else f", at most {self.high:g}")
        return (
            f"{unit} of at least {self.low:g}"
            if math.isinf(self.high)
            else f"{unit} from {self.low:g} to {self.high:g}"
        )

    @property
    def range(self) -> str:
        """What a help shows of it: nothing if there is no upper end."""
        return "" if math.isinf(self.high) else f"{self.low:g}{'<' if self.above else '<='}x<={self.high:g}"


@dataclass(frozen=True)
class Text:
    """A text that is not empty.

    hint         what to give, in words
    pattern      what all of it must match
    suggestions  some of the values that are possible
    commas       whether several are given in one, with commas between
    cards        whether it is the name of a card
    """

    hint: str = "give a name"
    pattern: str = ""
    suggestions: tuple[str, ...] = ()
    commas: bool = False
    cards: bool = False

    def __contains__(self, value: object) -> bool:
        return (
            isinstance(value, str)
            and bool(value.strip())
            and re.fullmatch(self.pattern or ".*", value, re.S) is not None
        )


@dataclass(frozen=True)
class Size:
    """A number of bytes, given as such or as a text: 5GB, 4.7 GiB, 700MB."""

    low: int = 1
    hint: str = "give a size such as 5GB or 700MB"

    def __contains__(self, value: object) -> bool:
        return type(value) is int and value >= self.low


Values = OneOf | Within | Text | Size


@dataclass(frozen=True)
class Declaration:
    """What a field says about itself.

    group   the heading that it stands under
    help    what it does: sentences that are understood without its name
    values  which values it takes, beyond the type
    flag    its names on the command line, if they do not follow from its name: "--symmetric/--asymmetric"
    shown   what stands for the default: None is the default itself, "" is nothing
    """

    group: str
    help: str
    values: Values | None = None
    flag: str = ""
    shown: str | None = None


def option(
    default: T, group: str, help: str, values: Values | None = None, flag: str = "", shown: str | None = None
) -> T:
    """A field of a dataclass of options; the arguments are those of Declaration. Type checkers see its default."""
    declaration = Declaration(group, help, values, flag, shown)
    return field(default=default, metadata={"option": declaration})


@dataclass(frozen=True)
class Option:
    """A field of a dataclass of options, with its type taken apart.

    kind      of one value: bool, int, float, str or Path
    optional  whether None is a value; many: whether it holds several values, in a tuple
    """

    name: str
    default: object
    kind: type
    optional: bool
    many: bool
    declaration: Declaration

    @property
    def flags(self) -> tuple[str, ...]:
        """Its names on the command line; the last one is for what is off, if there are two for a bool."""
        return tuple((self.declaration.flag or "--" + self.name.replace("_", "-")).split("/"))

    @property
    def label(self) -> str:
        """Its name in messages."""
        return self.flags[0].removeprefix("--")

    @property
    def commas(self) -> bool:
        """Whether a text names several values, with commas between."""
        values = self.declaration.values
        return self.many and (self.kind is int or (isinstance(values, OneOf | Text) and values.commas))

    def parse(self, value: object) -> object:
        """The value that a text stands for. What stands for none is left as it is: `check` says what is wrong."""
        if self.many:
            given = value if isinstance(value, list | tuple) else (value,)
            return tuple(dict.fromkeys(self._parse_one(part) for one in given for part in self._split(one)))
        return self._parse_one(value)

    def _split(self, value: object) -> Sequence[Any]:
        return [part.strip() for part in value.split(",")] if self.commas and isinstance(value, str) else (value,)

    def _parse_one(self, value: object) -> object:
        if not isinstance(value, str):
            return value
        if isinstance(self.declaration.values, Size):
            return nbytes(value)
        if self.kind is int:
            return int(value) if INTEGER.fullmatch(value) else value
        if self.kind is float:
            try:
                return float(value)
            except ValueError:
                return value
        return Path(value) if self.kind is Path else value

    def check(self, value: object) -> None:
        """Raises RecipeError for a value that is not possible."""
        if value is None and self.optional:
            return
        if self.many and not isinstance(value, tuple):
            raise RecipeError(f"{self.label} is {value!r}", "give a tuple of values")
        for one in value if isinstance(value, tuple) and self.many else (value,):
            if not self._possible(one):
                raise self._refusal(one)

    def _possible(self, value: object) -> bool:
        kinds = (int, float) if self.kind is float else (str, Path) if self.kind is Path else self.kind
        if not isinstance(value, kinds) or (isinstance(value, bool) and self.kind is not bool):
            return False
        return self.declaration.values is None or value in self.declaration.values

    def _refusal(self, value: object) -> RecipeError:
        values = self.declaration.values
        message = f"{self.label} is {value!r}"
        if isinstance(values, OneOf):
            return RecipeError(f"{self.label} {value!r} is not supported", values.hint_for(value))
        if isinstance(values, Text | Size):
            limited = isinstance(values, Text) and values.pattern
            return RecipeError(f"{self.label} {value!r} is not supported" if limited else message, values.hint)
        noun = {bool: "true or false", int: "a whole number", float: "a number"}.get(self.kind, "a name")
        need = f"{values.need}; " if values and values.need else ""
        return RecipeError(need + message, f"give {noun}{values.hint if values else ''}")


@cache
def options_of(kind: type) -> tuple[Option, ...]:
    """The options of a dataclass, in the order of its fields."""
    hints = get_type_hints(kind)
    return tuple(_option(one, hints[one.name]) for one in fields(kind) if "option" in one.metadata)


def _option(one: Field[object], hint: Any) -> Option:
    optional = get_origin(hint) in (Union, types.UnionType)
    if optional:
        (hint,) = (part for part in get_args(hint) if part is not type(None))
    many = get_origin(hint) is tuple
    if many:
        hint = get_args(hint)[0]
    declaration: Declaration = one.metadata["option"]
    if get_origin(hint) is Literal:
        declaration = Declaration(
            declaration.group, declaration.help, OneOf(get_args(hint)), declaration.flag, declaration.shown
        )
        hint = str
    assert one.default is not MISSING
    return Option(one.name, one.default, hint, optional, many, declaration)


def check(options: object) -> None:
    """Raises RecipeError naming the first value of a dataclass of options that is not possible."""
    kind: type = type(options)
    for one in options_of(kind):
        one.check(getattr(options, one.name))


def parsed(kind: type, values: Mapping[str, object]) -> dict[str, object]:
    """Named values with the texts among them read as the options of a dataclass are; those of other names unread."""
    known = {one.name: one for one in options_of(kind)}
    return {name: known[name].parse(value) if name in known else value for name, value in values.items()}


def nbytes(value: str) -> int | str:
    """The bytes that a text such as 5GB, 4.7 GiB or 700MB says; any other text as it is."""
    found = SIZE.fullmatch(value.strip())
    unit = UNITS.get(found[2].lower()) if found else None
    return int(float(found[1]) * unit) if found and unit else value

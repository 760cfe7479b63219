"""The table of well-known cards and machines, `gpus.toml`, and a user's own, read strictly: an unknown or missing key
is an error.

It does not know which of them this machine has.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from r1quant.errors import RecipeError

KINDS = ("consumer", "workstation", "data-centre", "laptop", "apple", "jetson", "cpu")
PCIE = 25e9  # bytes a second that PCIe 4.0 x16 carries one way
REQUIRED = ("name", "kind", "memory_gib", "bandwidth_gbs", "fp16_tflops", "bf16", "source")
OPTIONAL = ("link_gbs",)
LIKE = 0.4  # of a name, to be proposed for another
# Words of a driver's name for a card that do not tell which it is.
NOISE = re.compile(
    r"nvidia|geforce|tesla|amd|radeon|intel|apple|gpu|generation|graphics|workstation|edition|sxm\d?|pcie|hbm\w*|\d+gb|r|tm"
)


@dataclass(frozen=True)
class Card:
    """name         what users call it
    memory_bytes  of the card, or of a machine whose processors share it
    bandwidth     of that memory, bytes a second
    fp16_flops, bf16_flops  dense floating-point operations a second; 0 if the card has no such arithmetic
    kind          one of KINDS
    link          bytes a second to another such card, one way
    source        where the figures are from
    """

    name: str
    memory_bytes: int
    bandwidth: float
    fp16_flops: float
    bf16_flops: float
    kind: str = "data-centre"
    link: float = PCIE
    source: str = ""


@cache
def cards() -> Mapping[str, Card]:
    """All cards, by name."""
    return parse(resources.files("r1quant").joinpath("hardware", "gpus.toml").read_text("utf-8"), "gpus.toml")


def with_own(path: Path) -> Mapping[str, Card]:
    """The cards with those of a user's file added, or in place of those of the same name. Raises RecipeError."""
    try:
        return {**cards(), **parse(path.read_text("utf-8"), path.name)}
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}", "name a TOML file of [[card]] tables") from None
    except ValueError as error:
        raise RecipeError(str(error), f"each [[card]] has {', '.join(REQUIRED)}") from None


def card(name: str) -> Card:
    """The card of that name, whatever its case and spaces. Raises RecipeError that names those that are like it."""
    match = next((known for title, known in cards().items() if _plain(title) == _plain(name)), None)
    if match is None:
        raise _unknown(name, cards())
    return match


def matching(name: str, table: Mapping[str, Card]) -> list[Card]:
    """The cards that a user means: the one of that name, else all of a kind, else all whose name contains it.

    Raises RecipeError that names those that are like it.
    """
    plain = _plain(name)
    matches = [known for title, known in table.items() if _plain(title) == plain]
    matches = matches or [known for known in table.values() if _plain(known.kind) == plain]
    matches = matches or [known for title, known in table.items() if plain and plain in _plain(title)]
    if not matches:
        raise _unknown(name, table)
    return matches


def driven(name: str, memory_bytes: int, table: Iterable[Card]) -> Card | None:
    """The card that a driver calls by a name such as "NVIDIA A100-SXM4-40GB", by the words of that name and the
    memory; None if none of the table is it.
    """
    words = _words(name)

    def alike(known: Card) -> bool:
        near = 0.85 <= memory_bytes / known.memory_bytes <= 1.1
        return near and _telling_words(_words(known.name)) == _telling_words(words)

    def rank(known: Card) -> tuple[int, bool]:
        return len(_words(known.name) & words), known.name.endswith("SXM")

    return max(filter(alike, table), key=rank, default=None)


def parse(text: str, file: str) -> dict[str, Card]:
    """A table of cards. Raises ValueError on a missing, unknown, repeated or impossible entry."""
    raw = tomllib.loads(text)
    if set(raw) != {"card"} or not isinstance(raw["card"], list):
        raise ValueError(f"{file}: the only table is [[card]]")
    table: dict[str, Card] = {}
    for entry in raw["card"]:
        entry_card = _card(entry, file)
        if entry_card.name in table:
            raise ValueError(f"{file}: {entry_card.name} is there twice")
        table[entry_card.name] = entry_card
    return table


def _card(entry: Any, file: str) -> Card:
    if not isinstance(entry, dict) or not set(REQUIRED) <= set(entry) <= {*REQUIRED, *OPTIONAL}:
        raise ValueError(f"{file}: the keys must be {', '.join(REQUIRED)}, and may be {', '.join(OPTIONAL)}")
    name = entry["name"]
    if not isinstance(name, str) or not name:
        raise ValueError(f"{file}: a card's name is {name!r}")
    for key in ("memory_gib", "bandwidth_gbs", "fp16_tflops", *(key for key in OPTIONAL if key in entry)):
        value = entry[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
            raise ValueError(f"{file}: {key} of {name} is {value!r}")
    if entry["kind"] not in KINDS:
        raise ValueError(f"{file}: kind of {name} is {entry['kind']!r}, not one of {', '.join(KINDS)}")
    if not isinstance(entry["bf16"], bool) or not isinstance(entry["source"], str):
        raise ValueError(f"{file}: bf16 of {name} must be true or false, and source a text")
    flops = entry["fp16_tflops"] * 1e12
    return Card(
        name,
        round(entry["memory_gib"] * (1 << 30)),
        entry["bandwidth_gbs"] * 1e9,
        flops,
        flops if entry["bf16"] else 0.0,
        entry["kind"],
        entry["link_gbs"] * 1e9 if "link_gbs" in entry else PCIE,
        entry["source"],
    )


def _unknown(name: str, table: Mapping[str, Card]) -> RecipeError:
    """Names the three most alike. A part of a name, such as 4061, is compared with the parts of names too."""
    plain = _plain(name)

    def likeness(title: str) -> float:
        parts = (_plain(title), *_words(title))
        return max(difflib.SequenceMatcher(None, plain, part).ratio() for part in parts)

    near = [title for title in sorted(table, key=likeness, reverse=True)[:3] if likeness(title) >= LIKE]
    meant = f"did you mean {' or '.join(near)}? " if near else ""
    return RecipeError(f"the card {name!r} is not known", f"{meant}r1quant fit --json lists all cards")


def _words(name: str) -> set[str]:
    return set(re.split(r"[^a-z0-9+]+", name.lower())) - {""}


def _telling_words(words: set[str]) -> set[str]:
    return {word for word in words if not NOISE.fullmatch(word)}


def _plain(name: str) -> str:
    return "".join(name.lower().split())

"""The table of well-known cards, `gpus.toml`, read strictly: an unknown or missing key is an error.

It does not know which card this machine has.
"""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import dataclass, fields
from functools import cache
from importlib import resources
from typing import Any

from r1quant.errors import RecipeError


@dataclass(frozen=True)
class Card:
    """name         what users call it
    memory_bytes  of the card
    bandwidth     of that memory, bytes a second
    fp16_flops, bf16_flops  dense floating-point operations a second; 0 where the card has no such arithmetic
    """

    name: str
    memory_bytes: int
    bandwidth: float
    fp16_flops: float
    bf16_flops: float


@cache
def cards() -> dict[str, Card]:
    """All cards, by name."""
    return parse(resources.files("r1quant").joinpath("hardware", "gpus.toml").read_text("utf-8"), "gpus.toml")


def card(name: str) -> Card:
    """The card of that name, whatever its case and spaces. Raises RecipeError naming those that are known."""
    wanted = _plain(name)
    known = {_plain(title): found for title, found in cards().items()}
    if wanted in known:
        return known[wanted]
    near = [known[title].name for title in difflib.get_close_matches(wanted, known, 3)]
    raise RecipeError(f"the card {name!r} is not known", f"choose from {', '.join(near or cards())}")


def parse(text: str, where: str) -> dict[str, Card]:
    """A table of cards. Raises ValueError on a missing, unknown, repeated or impossible entry."""
    raw = tomllib.loads(text)
    if set(raw) != {"card"} or not isinstance(raw["card"], list):
        raise ValueError(f"{where}: the only table is [[card]]")
    found: dict[str, Card] = {}
    for entry in raw["card"]:
        made = _card(entry, where)
        if made.name in found:
            raise ValueError(f"{where}: {made.name} is there twice")
        found[made.name] = made
    return found


def _card(entry: Any, where: str) -> Card:
    names = {field.name for field in fields(Card)}
    if not isinstance(entry, dict) or set(entry) != names:
        raise ValueError(f"{where}: the keys must be exactly {sorted(names)}")
    name = entry["name"]
    if not isinstance(name, str) or not name:
        raise ValueError(f"{where}: a card's name is {name!r}")
    for key in sorted(names - {"name"}):
        value = entry[key]
        kind: Any = int if key == "memory_bytes" else int | float
        least = 0 if key == "bf16_flops" else 1
        if isinstance(value, bool) or not isinstance(value, kind) or value < least:
            raise ValueError(f"{where}: {key} of {name} is {value!r}")
    return Card(**entry)


def _plain(name: str) -> str:
    return "".join(name.lower().split())

"""The licence of a model: what was said of it, by whom, and whether it lets a quantized copy be passed on."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

from r1quant.core.json import JsonObject


@dataclass(frozen=True)
class Licence:
    """id: the Hub's identifier; name and link: of a licence that has none (`other`); origin: where it is stated."""

    id: str
    name: str | None = None
    link: str | None = None
    origin: str = ""

    @property
    def label(self) -> str:
        return self.name or self.id if self.id == "other" else self.id

    @property
    def where(self) -> str | None:
        """The address of its text."""
        known = _table()
        return self.link or known["permits"].get(self.id) or known["forbids"].get(self.id) or self._named

    @property
    def _named(self) -> str | None:
        address = _table()["permits_by_name"].get((self.name or "").lower()) if self.id == "other" else None
        return address if isinstance(address, str) else None

    @property
    def refused(self) -> str | None:
        """Why a quantized copy must not be passed on; None if it may be."""
        if self.id in _table()["forbids"]:
            return f"the licence {self.label} forbids to pass on changed copies"
        if self.id in _table()["permits"] or self._named:
            return None
        return f"the licence {self.label!r} is not one that is known to let quantized copies be passed on"


def of_card(metadata: JsonObject, origin: str) -> Licence | None:
    """What the metadata of a model card states; None if it states nothing."""
    stated = metadata.get("license")
    if isinstance(stated, list) and len(stated) == 1:
        stated = stated[0]
    if not isinstance(stated, str) or not stated.strip() or stated == "unknown":
        return None
    name, link = (
        value if isinstance(value := metadata.get(key), str) else None for key in ("license_name", "license_link")
    )
    return Licence(stated.strip().lower(), name, link, origin)


def of_text(text: str, origin: str) -> Licence | None:
    """The licence whose text this is; None if it is not a known one."""
    line = " ".join(text.lower().split())
    known = _table()["texts"].items()
    identifier = next((name for name, parts in known if all(part in line for part in parts)), None)
    return None if identifier is None else Licence(identifier, origin=origin)


def reference(licence: Licence) -> str:
    """A licence file for a model that came with none: what is known, and no text that nobody has seen."""
    return (
        f"This model is a quantized copy, and is under the licence of the model it was made from: {licence.label}.\n"
        f"Stated by: {licence.origin}.\n"
        f"Text of the licence: {licence.where or 'not known'}\n"
    )


@cache
def _table() -> Mapping[str, JsonObject]:
    return tomllib.loads(resources.files("r1quant").joinpath("publishing", "licences.toml").read_text("utf-8"))

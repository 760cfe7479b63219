"""The model that something was made from: its name, its revision, its licence, as far as these can be found out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from r1quant.checkpoint import hub
from r1quant.checkpoint.resolve import EMBEDDED, HUB_ID, is_embedded
from r1quant.publishing import licence as licences
from r1quant.publishing.licence import Licence
from r1quant.publishing.metadata import read
from r1quant.records.export import Export
from r1quant.records.quantization import Quantization

SNAPSHOT = re.compile(r"models--([\w.-]+?)--([\w.-]+)/snapshots/([0-9a-f]{40})")
LICENCE_FILES = ("LICENSE*", "LICENCE*", "COPYING*")


@dataclass(frozen=True)
class Origin:
    """name: for the card; repo and revision: on the Hub, None if they are not known; text: of its licence, if it has
    one; clash: what to say if the user names another licence than the model does."""

    name: str
    repo: str | None
    revision: str | None
    licence: Licence | None
    text: bytes | None
    clash: str | None = None


def origin(
    out: Path, part: Path, record: Quantization | Export | None, base_model: str | None, stated: str | None
) -> Origin:
    """What the model in the folder `part` of `out` was made from, by its record.

    base_model, stated   the Hub id and the licence that the user names, which count for more than what is found
    """
    source, weights = (record.source if record else None), (record.weights if isinstance(record, Quantization) else {})
    local = _local(part, source) if source else None
    repo, revision = _on_hub(source if local is None else None, local, weights)
    if base_model is not None:
        repo, revision = base_model, revision if base_model == repo else None
    quantized = record.quantization if isinstance(record, Export) else record
    name = repo or (quantized.model if quantized else None) or (local.name if local else source) or out.resolve().name
    folders = [out, part, *([local] if local is not None else [])]
    files = [path for folder in folders for pattern in LICENCE_FILES for path in sorted(folder.glob(pattern))]
    text = next((path.read_bytes() for path in files if path.is_file()), None)
    licence = _found(local, repo, text)
    if source == EMBEDDED or (local is not None and is_embedded(name, local)):
        licence, text = _embedded()
    clash = None
    if stated is not None:
        stated_licence = Licence(stated.lower(), origin="whoever published this")
        if licence is not None and licence.id != stated_licence.id:
            clash = f"the licence is given as {stated_licence.label}, but {licence.origin} says {licence.label}"
        licence = licence if licence is not None and clash is None else stated_licence
    return Origin(name, repo, revision, licence, text, clash)


def _local(part: Path, source: str) -> Path | None:
    path = (part / source).resolve()
    return path if path.exists() else None


def _on_hub(source: str | None, local: Path | None, weights: Mapping[str, str]) -> tuple[str | None, str | None]:
    """The repository, and the revision whose files have these hashes; None if they are not known."""
    if local is not None:
        snapshot = SNAPSHOT.search(local.as_posix())
        return (f"{snapshot[1]}/{snapshot[2]}", snapshot[3]) if snapshot else (None, None)
    if source is None or not HUB_ID.fullmatch(source):
        return None, None
    return source, hub.cached(source, weights) if weights else None


def _found(local: Path | None, repo: str | None, text: bytes | None) -> Licence | None:
    """What the card of the source states, else what its licence file is."""
    cards = []
    if local is not None:
        folder = local if local.is_dir() else local.parent
        path = folder / "README.md"
        if path.is_file():
            cards.append((path.read_text("utf-8", errors="replace"), "the card of the model it was made from"))
    if repo is not None and not cards:
        cards.append((hub.card(repo) or "", f"the card of {repo}"))
    for card, where in cards:
        if stated := licences.of_card(read(card), where):
            return stated
    plain = (text or b"").decode("utf-8", errors="replace")
    return licences.of_text(plain, "the licence file that came with the model")


def _embedded() -> tuple[Licence, bytes | None]:
    """Of the model inside the package: the licence of the package."""
    package = metadata.distribution("r1quant")
    named = (path for path in package.files or [] if path.name == "LICENSE")
    text = next((Path(str(path.locate())).read_bytes() for path in named), None)
    return Licence(package.metadata["License-Expression"].lower(), origin="r1quant, which holds this model"), text

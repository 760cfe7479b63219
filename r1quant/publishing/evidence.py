"""Which measurements belong to what is published, and whether they are there, fresh and good enough.

A record belongs to a model by the hash of its files. It does not know how hashes are made, nor where records lie.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

VERIFICATION, BENCH = "r1quant.verification/2", "r1quant.bench/1"


@dataclass(frozen=True)
class PublishedModel:
    """One model of those that are published.

    name      its folder or file inside what is published; empty for the folder itself
    called    what a record may call it: the last parts of its path
    format    as Artifact.format
    grid      its bits and group sizes, or GGUF type, in words
    identity  the hash of its files, as records have it
    nbytes    of its weights
    record    its r1quant.json; empty where it has none
    same_as   the part whose weights it holds bit for bit, as was checked; None where it holds others
    runtimes  those that load it
    modelfile the file beside it by which Ollama makes a model of it; empty where there is none
    """

    name: str
    called: frozenset[str]
    format: str
    grid: str
    identity: str
    nbytes: int
    record: Mapping[str, Any] = field(default_factory=dict)
    same_as: str | None = None
    runtimes: tuple[str, ...] = ()
    modelfile: str = ""

    @property
    def label(self) -> str:
        return self.name or "the model"


@dataclass(frozen=True)
class Record:
    """A record that was found, or named by the user (`given`)."""

    name: str
    content: Mapping[str, Any]
    given: bool = False

    def of_kind(self, kind: str) -> bool:
        return self.content.get("schema") == kind

    @property
    def identity(self) -> str | None:
        """The hash of the model that was measured."""
        hashes = self.content.get("hashes")
        found = hashes.get("quantized") if isinstance(hashes, Mapping) else None
        return found if isinstance(found, str) else None

    @property
    def measured(self) -> str:
        """The last part of what it calls the model."""
        return PurePath(str(self.content.get("out", ""))).name

    @property
    def mock(self) -> bool:
        return any(str(self.content.get(key, "")).startswith("mock") for key in ("backend", "baseline_backend"))

    @property
    def failed(self) -> list[str]:
        """The gates that do not hold."""
        gates = self.content.get("gates") or []
        return [str(gate["gate"]) for gate in gates if isinstance(gate, Mapping) and not gate.get("passed")]


@dataclass(frozen=True)
class Evidence:
    """The records of each part, by its name, and what is wrong with them."""

    records: Mapping[str, tuple[Record, ...]]
    reasons: tuple[str, ...]

    def of(self, part: PublishedModel, kind: str) -> list[Record]:
        return [record for record in self.records[part.name] if record.of_kind(kind)]

    @property
    def used(self) -> list[Record]:
        return list({record.name: record for found in self.records.values() for record in found}.values())


def match_records(parts: Sequence[PublishedModel], found: Iterable[Record]) -> Evidence:
    """Takes the records that belong to the parts. Records of other models are left aside unless the user named them."""
    known = [record for record in found if record.of_kind(VERIFICATION) or record.of_kind(BENCH)]
    records = {part.name: tuple(record for record in known if record.identity == part.identity) for part in parts}
    fresh = {record.name for kept in records.values() for record in kept}
    reasons = []
    for part in parts:
        verified = [record for record in records[part.name] if record.of_kind(VERIFICATION)]
        stale = [record for record in known if record.name not in fresh and record.measured in part.called]
        if not verified and part.same_as is None:
            old = next((record for record in stale if record.of_kind(VERIFICATION)), None)
            missing = "nothing says how good it is: measure it with r1quant verify --record"
            reasons.append(
                f"{part.label}: the record {old.name} was made of other files than those that are here now"
                if old
                else f"{part.label}: {missing}"
            )
    for record in known:
        if record.given and record.name not in fresh:
            which = "does not say which files were measured" if record.identity is None else "is of other files"
            reason = f"the record {record.name} {which}: measure again"
            if not any(record.name in other for other in reasons):
                reasons.append(reason)
    for record in known:
        if record.name in fresh:
            if record.mock:
                reasons.append(f"the record {record.name} is of the mock backend, which invents its answers")
            reasons += [f"the gate {gate} does not hold in {record.name}" for gate in record.failed]
    if not any(part.record for part in parts):
        reasons.append("nothing says how it was made: there is no r1quant.json beside the weights")
    return Evidence(records, tuple(reasons))

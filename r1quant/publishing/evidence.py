"""Which measurements belong to what is published, and whether they are there, fresh and good enough.

A record belongs to a model by the hash of its files. It does not know how hashes are made, nor where records lie.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from r1quant.core.json import JsonObject
from r1quant.errors import CheckpointError, RecordError
from r1quant.records.bench import Bench
from r1quant.records.export import Export
from r1quant.records.quantization import Quantization
from r1quant.records.verification import Verification


@dataclass(frozen=True)
class PublishedModel:
    """One model of those that are published.

    name      its folder or file inside what is published; empty for the folder itself
    called    what a record may call it: the last parts of its path
    format    as Artifact.format
    grid      its bits and group sizes, or GGUF type, in words
    identity  the hash of its files, as records have it
    nbytes    of its weights
    record    its r1quant.json; None if it has none
    same_as   the part whose weights it holds bit for bit, as was checked; None if it holds others
    runtimes  those that load it
    modelfile the file beside it by which Ollama makes a model of it; empty if there is none
    """

    name: str
    called: frozenset[str]
    format: str
    grid: str
    identity: str
    nbytes: int
    record: Quantization | Export | None = None
    same_as: str | None = None
    runtimes: tuple[str, ...] = ()
    modelfile: str = ""

    @property
    def label(self) -> str:
        return self.name or "the model"

    @property
    def quantization(self) -> Quantization | None:
        """How it was made: what quantize recorded, else what an export kept of that; None if nothing says so."""
        if isinstance(self.record, Export):
            by = self.record.quantization
            return None if by is None else Quantization(by.model, recipe=by.recipe or {}, calibration=by.calibration)
        return self.record


@dataclass(frozen=True)
class RecordFile:
    """A record of verify or bench as a file: its name, its JSON, what is read of it; given: if the user named it.

    The record is read leniently, so that a damaged one can still be told from those of other models; see `strict`.
    """

    name: str
    content: JsonObject
    record: Verification | Bench
    given: bool = False

    @property
    def identity(self) -> str | None:
        """The hash of the model that was measured."""
        hashes = self.record.hashes
        return (hashes.get("quantized") if isinstance(hashes, Mapping) else hashes.quantized) or None

    @property
    def measured(self) -> str:
        """The last part of what it calls the model."""
        return PurePath(self.record.out).name

    @property
    def mock(self) -> bool:
        record = self.record
        backends = (record.backend, record.baseline_backend) if isinstance(record, Verification) else ()
        return any(backend.startswith("mock") for backend in backends)

    @property
    def failed(self) -> list[str]:
        """The gates that do not hold."""
        gates = self.record.gates if isinstance(self.record, Verification) else ()
        return [verdict.gate for verdict in gates if not verdict.passed]

    def strict(self) -> Verification | Bench:
        """The record as it was written. Raises CheckpointError if it is damaged."""
        try:
            return type(self.record).from_json(self.content)
        except RecordError as error:
            raise CheckpointError(f"the record {self.name} is damaged: {error.message}", "measure again") from None


@dataclass(frozen=True)
class Evidence:
    """The records of each part, by its name, and what speaks against publishing them."""

    records: Mapping[str, tuple[RecordFile, ...]]
    reasons: tuple[str, ...]

    def verifications(self, part: PublishedModel) -> list[Verification]:
        return [file.record for file in self.records[part.name] if isinstance(file.record, Verification)]

    def benches(self, part: PublishedModel) -> list[Bench]:
        return [file.record for file in self.records[part.name] if isinstance(file.record, Bench)]

    @property
    def used(self) -> list[RecordFile]:
        return list({file.name: file for files in self.records.values() for file in files}.values())


def match_records(parts: Sequence[PublishedModel], files: Iterable[RecordFile]) -> Evidence:
    """Takes the records that belong to the parts. Records of other models are left aside unless the user named them."""
    files = list(files)
    records = {part.name: tuple(file for file in files if file.identity == part.identity) for part in parts}
    fresh = {file.name for own in records.values() for file in own}
    reasons = [reason for part in parts if (reason := _unmeasured(part, records[part.name], files, fresh))]
    for file in files:
        if file.given and file.name not in fresh and not any(file.name in reason for reason in reasons):
            which = "does not say which files were measured" if file.identity is None else "is of other files"
            reasons.append(f"the record {file.name} {which}: measure again")
    for file in files:
        if file.name in fresh:
            if file.mock:
                reasons.append(f"the record {file.name} is of the mock backend, which invents its answers")
            reasons += [f"the gate {gate} does not hold in {file.name}" for gate in file.failed]
    if not any(part.record for part in parts):
        reasons.append("nothing says how it was made: there is no r1quant.json beside the weights")
    return Evidence(records, tuple(reasons))


def _unmeasured(
    part: PublishedModel, own: Sequence[RecordFile], files: Sequence[RecordFile], fresh: set[str]
) -> str | None:
    """Why nothing says how good a part is; None if something does. fresh: records that belong to some part."""
    if part.same_as is not None or any(isinstance(file.record, Verification) for file in own):
        return None
    old = (
        file.name
        for file in files
        if isinstance(file.record, Verification) and file.name not in fresh and file.measured in part.called
    )
    name = next(old, None)
    if name is not None:
        return f"{part.label}: the record {name} was made of other files than those that are here now"
    return f"{part.label}: nothing says how good it is: measure it with r1quant verify --record"

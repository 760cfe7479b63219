"""publish: a quantized model with its card, checksums, provenance and licence, into a folder or onto the Hub.

What speaks against it is all found first, and said; nothing is written then unless it is forced, which the card tells.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from r1quant.arch.tables import architecture_of
from r1quant.checkpoint.safetensors import short_name
from r1quant.core.json import JsonObject
from r1quant.errors import CheckpointError, OutOfSpaceError, RecipeError, ResumeError
from r1quant.jobs.artifacts import newest_output
from r1quant.jobs.checkpoint_writer import RECORD, record_bytes
from r1quant.jobs.publish.options import PublishOptions
from r1quant.jobs.publish.origin import Origin, origin
from r1quant.jobs.publish.parts import Opened, files_of, parts_of, with_equals
from r1quant.jobs.publish.records import RECORDS, SMALL, found_records
from r1quant.jobs.publish.scan import scan
from r1quant.jobs.publish.upload import Outgoing, Sent, upload
from r1quant.jobs.serving import model_of
from r1quant.progress import Progress, Silent
from r1quant.publishing import licence as licences
from r1quant.publishing.card import ModelCard
from r1quant.publishing.checksums import STATEMENT, SUMS, statement, sums
from r1quant.publishing.evidence import Evidence, RecordFile, match_records
from r1quant.publishing.paths import public, public_record
from r1quant.records.quantization import Quantization
from r1quant.records.verification import Verification
from r1quant.storage import atomic, provenance
from r1quant.storage.jsonfile import read_object

CARD, LICENCE = "README.md", "LICENSE"
REWRITTEN = {CARD, SUMS, STATEMENT}  # what is written anew, whatever OUT has under these names


@dataclass(frozen=True)
class Published:
    """refused: what speaks against it; files: what was written or sent, or would be; folder: where it was written."""

    options: PublishOptions
    refused: tuple[str, ...]
    files: tuple[Outgoing, ...] = ()
    folder: Path | None = None
    sent: Sent | None = None

    @property
    def done(self) -> bool:
        return not self.refused or self.options.force

    def as_dict(self) -> JsonObject:
        listed = [{"path": file.path, "bytes": file.nbytes, "sha256": file.sha256} for file in self.files]
        digest = next((file.sha256 for file in self.files if file.path == SUMS), None)
        return {
            "to": self.options.to,
            "repo": self.options.repo,
            "folder": None if self.folder is None else str(self.folder),
            "files": listed,
            "bytes": sum(file.nbytes for file in self.files),
            "digest": digest,
            "refused": list(self.refused),
            "forced": bool(self.refused) and self.options.force,
            "dry_run": self.options.dry_run,
            "commit": self.sent.commit if self.sent else None,
            "sent": list(self.sent.sent) if self.sent else [],
            "extra": list(self.sent.extra) if self.sent else [],
        }


def publish(out: str | Path | None, options: PublishOptions, progress: Progress | None = None) -> Published:
    """Puts everything together and writes or uploads it, unless something speaks against it.

    Raises RecipeError or ResumeError if the place is not free, CheckpointError if OUT is no quantized model,
    UploadError, OutOfSpaceError.
    """
    progress = progress or Silent()
    folder = Path(out) if out is not None else newest_output(Path())
    place = _place(folder, options)
    files = files_of(folder)
    hashes = _hashes(files, progress)
    records = found_records(folder, files.values(), options.records)
    parts = with_equals(parts_of(folder, hashes), records, progress)
    evidence = match_records([opened.part for opened in parts], records)
    for file in evidence.used:
        file.strict()
    source = _origin(folder, parts, options)
    payload = _payload(files, hashes, records, source)
    objections = [source.clash] if source.clash else []
    objections += [_unlicensed(source)] if _unlicensed(source) else []
    reasons = tuple(dict.fromkeys([*evidence.reasons, *objections, *scan([*payload, *_record_files(evidence)])]))
    if reasons and not options.force:
        return Published(options, reasons)
    outgoing = _assembled(folder, parts, evidence, source, payload, reasons, options)
    if place is not None:
        _write(place, outgoing, progress)
        return Published(options, reasons, outgoing, place)
    assert options.repo is not None
    message = options.message or f"{short_name(options.to, folder)}, quantized by r1quant {provenance.VERSION}"
    sent = upload(options.repo, outgoing, options.private, options.revision, message, progress)
    return Published(options, reasons, outgoing, None, sent)


def _place(out: Path, options: PublishOptions) -> Path | None:
    """The folder to write; None for an upload. Raises if it cannot be that."""
    if options.repo is not None and not options.dry_run:
        return None
    if options.repo is None and (options.private or options.revision or options.message):
        raise RecipeError(f"{options.to} is a folder", "leave out --private, --revision and --message")
    place = (Path(f"{options.repo.split('/')[1]}.publish") if options.repo else Path(options.to)).absolute()
    if place.exists() and not (place.is_dir() and not any(place.iterdir())):
        raise ResumeError(f"{place} exists already", "choose another folder, or delete it first")
    if not place.parent.is_dir():
        raise RecipeError(f"the folder {place.parent} does not exist", "create it, or choose another --to")
    if out.resolve() in place.resolve().parents:
        raise RecipeError(f"{options.to} lies in what is to be published", "choose a folder elsewhere")
    return place


def _hashes(files: Mapping[str, Path], progress: Progress) -> dict[str, str]:
    """Of every file as it is now, whatever has been remembered of it."""
    progress.begin("hashing", sum(path.stat().st_size for path in files.values()))
    hashed = {name: partial(progress.advance, text=path.name) for name, path in files.items()}
    return {name: provenance.sha256_of_file(path, hashed[name]) for name, path in files.items()}


def _origin(out: Path, parts: Sequence[Opened], options: PublishOptions) -> Origin:
    """By the record that says most: of quantize, else of an export."""
    opened = max(parts, key=lambda one: (isinstance(one.part.record, Quantization), one.part.record is not None))
    folder = opened.path if opened.path.is_dir() else opened.path.parent
    return origin(out, folder, opened.part.record, options.base_model, options.licence)


def _unlicensed(source: Origin) -> str:
    """Why its licence speaks against publishing it; empty if it does not."""
    if source.licence is None:
        return f"the licence of {source.name} is not known: state it with --license if you know it"
    return source.licence.refused or ""


def _outgoing(path: str, content: bytes) -> Outgoing:
    return Outgoing(path, content, provenance.sha256(content), len(content))


def _payload(
    files: Mapping[str, Path], hashes: Mapping[str, str], records: Sequence[RecordFile], source: Origin
) -> list[Outgoing]:
    """The files of OUT, but for records, which get a place of their own, and what is written anew."""
    measured = {provenance.sha256(record_bytes(record.content)) for record in records}
    payload = []
    for name, path in files.items():
        content = read_object(path, SMALL) if name.endswith(".json") else None
        if name in REWRITTEN or (content is not None and provenance.sha256(record_bytes(content)) in measured):
            continue
        if content is not None and path.name == RECORD:
            shown = public(content)
            local = isinstance(content.get("source"), str) and (path.parent / content["source"]).exists()
            payload.append(_outgoing(name, record_bytes({**shown, "source": source.name} if local else shown)))
        else:
            payload.append(Outgoing(name, path, hashes[name], path.stat().st_size))
    return payload


def _record_files(evidence: Evidence) -> list[Outgoing]:
    return [_outgoing(f"{RECORDS}/{record.name}", record_bytes(public(record.content))) for record in evidence.used]


def _assembled(
    out: Path,
    parts: Sequence[Opened],
    evidence: Evidence,
    source: Origin,
    payload: Sequence[Outgoing],
    forced: Sequence[str],
    options: PublishOptions,
) -> tuple[Outgoing, ...]:
    """All that is published."""
    files = [*payload, *_record_files(evidence)]
    if not any(file.path == LICENCE for file in files) and source.licence is not None:
        files.append(_outgoing(LICENCE, source.text or licences.reference(source.licence).encode()))
    name = short_name(options.repo or str(out), out)
    described = [opened.part for opened in parts]
    shown = {name: tuple(map(_public, files)) for name, files in evidence.records.items()}
    card = ModelCard(
        model_of(parts[0].artifact, name, options.repo),
        described,
        Evidence(shown, ()),
        source.licence,
        source.name,
        f"https://huggingface.co/{source.repo}" if source.repo else None,
        architecture_of(parts[0].artifact.config).model_type,
        forced,
        public_record(_how_made(parts)),
        provenance.VERSION,
    )
    files.append(_outgoing(CARD, card.text().encode()))
    files.sort(key=lambda file: file.path)
    body = {
        **_statement_body(parts, evidence, source, forced),
        "files": {file.path: {"sha256": file.sha256, "bytes": file.nbytes} for file in files},
    }
    stated = _outgoing(STATEMENT, statement(body))
    return (*files, stated, _outgoing(SUMS, sums({file.path: file.sha256 for file in files}, stated.source)))  # type: ignore[arg-type]


def _public(file: RecordFile) -> RecordFile:
    return replace(file, record=public_record(file.record))


def _how_made(parts: Sequence[Opened]) -> Quantization:
    """What quantize recorded, else what an export kept of that; empty if nothing says so."""
    own = [opened.part.record for opened in parts if isinstance(opened.part.record, Quantization)]
    known = (*own, *(opened.part.quantization for opened in parts))
    return next((one for one in known if one is not None), Quantization())


def _statement_body(parts: Sequence[Opened], evidence: Evidence, source: Origin, forced: Sequence[str]) -> JsonObject:
    """The body of provenance.json without the files."""
    how = public(_how_made(parts).as_dict())
    return {
        "r1quant": provenance.VERSION,
        "source": {
            "name": source.name,
            "repo": source.repo,
            "revision": source.revision,
            **{key: how[key] or None for key in ("weights", "config", "tokenizer")},
        },
        **{key: how[key] or None for key in ("recipe", "calibration", "environment")},
        "licence": None
        if source.licence is None
        else {
            "id": source.licence.id,
            "name": source.licence.name,
            "link": source.licence.where,
            "origin": source.licence.origin,
        },
        "parts": [
            {
                "name": opened.part.name,
                "format": opened.part.format,
                "grid": opened.part.grid,
                "identity": opened.part.identity,
                "bytes": opened.part.nbytes,
                "same_weights_as": opened.part.same_as,
                "records": [f"{RECORDS}/{record.name}" for record in evidence.records[opened.part.name]],
            }
            for opened in parts
        ],
        "gates": [
            {"record": f"{RECORDS}/{file.name}", "gate": gate.gate, "value": gate.value, "passed": gate.passed}
            for file in evidence.used
            if isinstance(file.record, Verification)
            for gate in file.record.gates
        ],
        "forced": list(forced),
    }


def _write(place: Path, files: Sequence[Outgoing], progress: Progress) -> None:
    """The folder, whole or not at all. Raises CheckpointError if a file changes meanwhile."""
    progress.begin(f"writing {place.name}", sum(file.nbytes for file in files))
    try:
        with atomic.whole_folder(place) as folder:
            for file in files:
                target = folder / file.path
                target.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(file.source, bytes):
                    atomic.write_bytes(target, file.source)
                    progress.advance(file.nbytes, file.path)
                else:
                    _copy(file.source, target, file.sha256, progress)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OutOfSpaceError(
            f"the disk of {place.parent} is full", "free some space, or choose another --to"
        ) from None


def _copy(source: Path, target: Path, expected: str, progress: Progress) -> None:
    digest = hashlib.sha256()
    with atomic.replacing(target) as copy:
        for piece in provenance.pieces(source):
            digest.update(piece)
            copy.write(piece)
            progress.advance(len(piece), source.name)
    if digest.hexdigest() != expected:
        raise CheckpointError(f"{source} changed while it was published", "run the same command again")

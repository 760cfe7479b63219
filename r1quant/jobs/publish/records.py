"""Finds the records of verify and bench that may belong to a folder: those named, those in it, and those beside it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from r1quant.errors import RecipeError
from r1quant.jobs.checkpoint_writer import record_bytes
from r1quant.publishing.evidence import RecordFile
from r1quant.records.bench import Bench
from r1quant.records.table import read_record
from r1quant.records.verification import Verification
from r1quant.storage.jsonfile import read_object
from r1quant.storage.provenance import sha256

RECORDS = "records"
SMALL = 1 << 24  # bytes of a file that may be a record


def found_records(out: Path, inside: Iterable[Path], named: Iterable[Path]) -> list[RecordFile]:
    """Each record once, under a name of its own. named: files, or folders of them.

    Raises RecipeError if one of them is not there, or is a file that is no record.
    """
    given = [path for name in named for path in _listed(name)]
    nearby = [place for base in (out.absolute().parent, Path.cwd()) for place in (base, base / RECORDS)]
    beside = [path for place in nearby for path in sorted(place.glob("*.json"))]
    files: dict[str, RecordFile] = {}
    for path in (*given, *(path for path in inside if path.suffix == ".json"), *beside):
        content = read_object(path, SMALL)
        record = read_record(content, lenient=True)
        if content is not None and isinstance(record, Verification | Bench):
            digest = sha256(record_bytes(content))
            taken = {file.name for key, file in files.items() if key != digest}
            name = f"{digest[:8]}-{path.name}" if path.name in taken else path.name
            files.setdefault(digest, RecordFile(name, content, record, path in given))
    return list(files.values())


def _listed(named: Path) -> list[Path]:
    if named.is_dir():
        return sorted(named.glob("*.json"))
    if not isinstance(read_record(read_object(named, SMALL), lenient=True), Verification | Bench):
        what = "is no record of verify or bench" if named.exists() else "is not there"
        raise RecipeError(f"the record {named} {what}", "name a file that r1quant verify or bench --record has written")
    return [named]

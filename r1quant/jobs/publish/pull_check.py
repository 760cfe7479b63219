"""pull-check: whether a folder holds what was published, file by file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from r1quant.core.json import JsonObject
from r1quant.errors import CheckpointError
from r1quant.progress import Progress, Silent
from r1quant.publishing.checksums import STATEMENT, SUMS, faults
from r1quant.storage.provenance import sha256, sha256_of_file


@dataclass(frozen=True)
class PullChecked:
    """files: path -> (bytes, sha256) of what is there; faults: missing, changed or extra, by path; digest: of
    SHA256SUMS, to be compared with what the publisher says."""

    files: Mapping[str, tuple[int, str]]
    faults: Mapping[str, str]
    digest: str | None

    def as_dict(self) -> JsonObject:
        kinds = {
            kind: [path for path, why in self.faults.items() if why == kind] for kind in ("missing", "changed", "extra")
        }
        return {
            "files": [{"path": path, "bytes": size, "sha256": digest} for path, (size, digest) in self.files.items()],
            "failed": list(self.faults),
            **kinds,
            "digest": self.digest,
        }


def pull_check(folder: str | Path, progress: Progress | None = None) -> PullChecked:
    """Raises CheckpointError if it is no folder that publish has written."""
    root, progress = Path(folder), progress or Silent()
    if not root.is_dir():
        raise CheckpointError(f"there is no folder {root}", "name the folder that was downloaded")
    sums, statement = (_content(root / name) for name in (SUMS, STATEMENT))
    if sums is None and statement is None:
        raise CheckpointError(
            f"{root} has no {SUMS} and no {STATEMENT}", "only what r1quant publish wrote can be checked"
        )
    paths = {path.relative_to(root).as_posix(): path for path in _walked(root)}
    progress.begin("checking", sum(path.stat().st_size for path in paths.values()))
    present = {
        name: (path.stat().st_size, sha256_of_file(path, partial(progress.advance, text=path.name)))
        for name, path in sorted(paths.items())
    }
    problems = faults({name: digest for name, (_, digest) in present.items()}, sums, statement)
    return PullChecked(present, problems, None if sums is None else sha256(sums))


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _walked(root: Path) -> list[Path]:
    """Every file; a link to a file, as caches have them, is that file."""
    paths = [Path(folder) / name for folder, _, names in os.walk(root) for name in names]
    return [path for path in paths if path.is_file()]

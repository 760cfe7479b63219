"""Files and folders that appear whole or not at all.

Written under a temporary name, flushed to the disk, renamed, and the folder flushed too, so that a name that
exists after a power cut has its content. It does not know what is in the files.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def sync_folder(folder: Path) -> None:
    """Flushes the folder's own entries: a rename is durable only after this."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file open for writing that takes the name `path` when the block ends without an exception."""
    temporary = path.with_name(f"{path.name}.partial")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, content: bytes) -> None:
    with replacing(path) as file:
        file.write(content)


def rename_folder(source: Path, target: Path) -> None:
    """Gives a finished folder its name. The target must not exist, or be an empty folder."""
    sync_folder(source)
    source.replace(target)
    sync_folder(target.parent)


@contextmanager
def _partial(place: Path) -> Iterator[Path]:
    """A folder beside `place` for what is not complete yet; it goes in any case."""
    partial = place.with_name(f".{place.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def whole_folder(place: Path) -> Iterator[Path]:
    """A folder that takes the name of `place` when the block ends well."""
    with _partial(place) as partial:
        yield partial
        rename_folder(partial, place)


@contextmanager
def whole_files(place: Path) -> Iterator[Path]:
    """A folder whose files move to where `place` is when the block ends well."""
    with _partial(place) as partial:
        yield partial
        for path in sorted(partial.iterdir(), reverse=True):
            path.replace(place.with_name(path.name))
        sync_folder(place.parent)

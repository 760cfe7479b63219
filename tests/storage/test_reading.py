"""Hashes of files, names of cache entries, and JSON objects out of files that may be anything."""

import hashlib
from pathlib import Path

import pytest

from r1quant.storage import cache
from r1quant.storage.jsonfile import read_object
from r1quant.storage.provenance import PIECE_BYTES, sha256_of_file


@pytest.mark.parametrize("length", [0, 1, PIECE_BYTES, PIECE_BYTES + 1])
def test_a_file_is_hashed_in_pieces_that_are_counted(length: int, tmp_path: Path) -> None:
    content, counted = bytes(range(256)) * (length // 256 + 1), list[int]()
    (tmp_path / "f").write_bytes(content[:length])
    assert sha256_of_file(tmp_path / "f", counted.append) == hashlib.sha256(content[:length]).hexdigest()
    assert sum(counted) == length and max(counted, default=0) <= PIECE_BYTES


def test_an_entry_is_named_after_what_decides_it_in_any_order() -> None:
    name = cache.key({"model": "m", "text": "t"})
    assert name == cache.key({"text": "t", "model": "m"}) and len(name) == 32
    assert len({name, cache.key({"model": "m", "text": "u"}), cache.key(["m", "t"])}) == 3


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b'"text"', b"\xff{}", b"[" * 100_000, b'{"a": 1}' + b" " * 100])
def test_what_is_no_small_object_is_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_bytes(content)
    assert read_object(tmp_path / "r.json", largest=100_000 if content.startswith(b"[[") else 100) is None
    assert read_object(tmp_path / "absent.json") is None


def test_an_object_is_read(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_bytes(b'{"a": [1, null]}')
    assert read_object(tmp_path / "r.json") == {"a": [1, None]}

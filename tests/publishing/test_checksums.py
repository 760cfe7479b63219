"""A change of any byte is told by the name of its file."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1quant.publishing.checksums import STATEMENT, SUMS, faults, hashes_of, statement, sums
from r1quant.storage.provenance import sha256

FILES = {"README.md": b"# a card\n", "a/model.gguf": b"weights", "é x.json": b"{}"}
HASHES = {path: sha256(content) for path, content in FILES.items()}
STATED = statement({"recipe": {"bits": 4, "loss": 1e-9}, "files": {path: {"sha256": h} for path, h in HASHES.items()}})
SUMMED = sums(HASHES, STATED)


def faults_with(changed: dict[str, bytes | None]) -> dict[str, str]:
    contents = {**FILES, STATEMENT: STATED, SUMS: SUMMED, **changed}
    found = {path: sha256(content) for path, content in contents.items() if content is not None}
    return faults(found, contents[SUMS], contents[STATEMENT])


def test_a_whole_folder_has_none() -> None:
    assert faults_with({}) == {}
    assert faults_with({".gitattributes": b"x", ".cache/huggingface/y": b"z", ".git/HEAD": b"ref"}) == {}


@pytest.mark.parametrize("name", [STATEMENT, SUMS])
def test_each_byte_of_the_two_is_told_by_name(name: str) -> None:
    whole = {STATEMENT: STATED, SUMS: SUMMED}[name]
    for place in range(len(whole)):
        for bit in (0, 5):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << bit
            assert name in faults_with({name: bytes(flipped)}), place


@given(st.sampled_from([*FILES, STATEMENT, SUMS]), st.data())
def test_any_change_of_one_file_names_it_alone(name: str, data: st.DataObject) -> None:
    whole = {**FILES, STATEMENT: STATED, SUMS: SUMMED}[name]
    place, bit = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7))
    flipped = bytearray(whole)
    flipped[place] ^= 1 << bit
    assert faults_with({name: bytes(flipped)}) == {name: "changed"}
    assert faults_with({name: whole + b"\n"}) == {name: "changed"}
    assert faults_with({name: None}) == {name: "missing"}


def test_missing_changed_and_extra_at_once() -> None:
    found = faults_with({"README.md": None, "a/model.gguf": b"other", "b.txt": b""})
    assert found == {"README.md": "missing", "a/model.gguf": "changed", "b.txt": "extra"}


def test_what_was_made_anew_beside_an_old_half_is_told() -> None:
    """Whoever changes a file and one of the two lists is found by the other."""
    other = {**HASHES, "README.md": sha256(b"forged")}
    body = {"files": {path: {"sha256": h} for path, h in other.items()}}
    assert faults_with({"README.md": b"forged", SUMS: sums(other, STATED)}) == {"README.md": "changed", SUMS: "changed"}
    assert faults_with({"README.md": b"forged", STATEMENT: statement(body)}) == {SUMS: "changed"}


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "a\\b", ""])
def test_paths_out_of_the_folder_are_damage(path: str) -> None:
    assert hashes_of(statement({"files": {path: {"sha256": "0" * 64}}})) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": []}', '{"sha256": 3, "files": {}}', "[" * 100_000])
def test_what_is_no_statement(text: str) -> None:
    assert hashes_of(text.encode()) is None


def test_the_form_is_that_of_sha256sum() -> None:
    assert SUMMED.decode().splitlines()[0] == f"{HASHES['README.md']}  README.md"
    assert [line.split("  ")[1] for line in SUMMED.decode().splitlines()] == sorted([*FILES, STATEMENT])
    assert json.loads(STATED)["recipe"] == {"bits": 4, "loss": 1e-9}

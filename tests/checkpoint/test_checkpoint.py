"""Headers are hostile: whatever a file says, it is read within its bounds or refused with CheckpointError."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from r1quant.checkpoint import safetensors
from r1quant.checkpoint.safetensors import Checkpoint, open_folder, read_header
from r1quant.errors import CheckpointError, NumericError, R1QuantError
from r1quant.planning import planner
from r1quant.recipe import Recipe
from tests import models

GOOD: dict[str, Any] = {
    "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
    "b": {"dtype": "BF16", "shape": [3], "data_offsets": [16, 22]},
    "c": {"dtype": "U8", "shape": [0, 7], "data_offsets": [22, 22]},
}
DATA = bytes(range(22))


def raw(header: Any, data: bytes = DATA, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def changed(**entry: Any) -> dict[str, Any]:
    """GOOD with its second tensor said to be otherwise."""
    return GOOD | {"b": GOOD["b"] | entry}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def test_a_good_header(file: Path) -> None:
    file.write_bytes(raw({"__metadata__": {"format": "pt"}, **dict(reversed(GOOD.items()))}))
    infos = read_header(file)
    assert list(infos) == ["a", "b", "c"]
    start = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    assert [(i.offset - start, i.nbytes, i.shape, i.dtype) for i in infos.values()] == [
        (0, 16, (2, 2), "F32"),
        (16, 6, (3,), "BF16"),
        (22, 0, (0, 7), "U8"),
    ]


BAD: dict[str, bytes] = {
    "empty": b"",
    "shorter than a length": b"\x02\0\0",
    "no header": (0).to_bytes(8, "little"),
    "header longer than the file": raw(GOOD, length=10_000),
    "header longer than memory": raw(GOOD, length=2**63),
    "header of all ones": b"\xff" * 64,
    "header cut by its length": raw(GOOD, length=40),
    "not JSON": raw(b"{'a': 1}"),
    "not text": raw(b"\x80\x81\xff\xfe"),
    "a list": raw([1, 2]),
    "a number": raw(b"17"),
    "a number too long to read": raw(b'{"a": ' + b"9" * 10_000 + b"}"),
    "deeply nested lists": raw(b"[" * 200_000),
    "deeply nested objects": raw(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "entry is not an object": raw(GOOD | {"b": [16, 22]}),
    "entry is null": raw(GOOD | {"b": None}),
    "no dtype": raw(GOOD | {"b": {"shape": [3], "data_offsets": [16, 22]}}),
    "unknown dtype": raw(changed(dtype="F12")),
    "dtype is a list": raw(changed(dtype=["BF16"])),
    "dtype is an object": raw(changed(dtype={"BF16": 1})),
    "wrong dtype for its size": raw(changed(dtype="F32")),
    "no shape": raw(GOOD | {"b": {"dtype": "BF16", "data_offsets": [16, 22]}}),
    "shape is a number": raw(changed(shape=3)),
    "negative shape": raw(changed(shape=[-3])),
    "two negative shapes": raw(changed(shape=[-1, -3])),
    "fractional shape": raw(changed(shape=[3.0])),
    "boolean shape": raw(changed(shape=[True, 3])),
    "shape in words": raw(changed(shape=["3"])),
    "shape that overflows": raw(changed(shape=[2**32, 2**32, 3])),
    "shape that overflows to the right size": raw(changed(shape=[2**63 + 3, 2])),
    "shape beyond all numbers": raw(changed(shape=[10**400])),
    "shape of many dimensions": raw(changed(shape=[1] * 100_000)),
    "wrong shape for its size": raw(changed(shape=[4])),
    "offsets missing": raw(GOOD | {"b": {"dtype": "BF16", "shape": [3]}}),
    "one offset": raw(changed(data_offsets=[16])),
    "three offsets": raw(changed(data_offsets=[16, 22, 22])),
    "negative offsets": raw(changed(data_offsets=[-6, 0])),
    "offsets into the header": raw(changed(data_offsets=[-22, -16])),
    "offsets the wrong way round": raw(changed(data_offsets=[22, 16])),
    "fractional offsets": raw(changed(data_offsets=[16.0, 22.0])),
    "offsets past the end": raw(changed(data_offsets=[17, 23])),
    "offsets far past the end": raw(changed(data_offsets=[2**47, 2**47 + 6])),
    "offsets beyond all files": raw(changed(data_offsets=[2**64, 2**64 + 6])),
    "tensors that overlap": raw(changed(data_offsets=[15, 21])),
    "tensors in the same place": raw(GOOD | {"d": GOOD["a"]}),
    "an empty tensor inside another": raw(GOOD | {"c": GOOD["c"] | {"data_offsets": [17, 17]}}),
    "a name with a newline": raw(GOOD | {"x\ny": GOOD["b"]}),
    "a name that steers the terminal": raw(GOOD | {"\x1b[2J": GOOD["b"]}),
    "a name that is no text": raw(b'{"\\ud800": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}'),
    "a name without end": raw(GOOD | {"n" * 10_000: GOOD["b"]}),
    "the data cut": raw(GOOD, DATA[:-1]),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_header(file: Path, what: str) -> None:
    file.write_bytes(BAD[what])
    with pytest.raises(CheckpointError) as caught:
        read_header(file)
    lines = str(caught.value).split("\n")
    assert len(lines) == 2 and all(line and len(line) < 400 and line.isprintable() for line in lines)
    assert "model.safetensors" in lines[0]


def test_what_is_not_a_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(CheckpointError, match="cannot be read"):
            read_header(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["F32", "BF16"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
NUMBERS = st.integers(-3, 30) | st.integers(-(2**70), 2**70)
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from([*safetensors.ITEM_SIZE, "F12"]) | JSON,
        "shape": st.lists(NUMBERS, max_size=4) | JSON,
        "data_offsets": st.lists(NUMBERS, min_size=2, max_size=2) | JSON,
        "more": JSON,
    },
)
HEADERS = st.dictionaries(st.sampled_from(["a", "b", "c", "d", "__metadata__"]) | st.text(max_size=4), ENTRIES | JSON)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A good file with some bytes changed, taken out or put in."""
    content = bytearray(raw(GOOD))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        content[at : at + draw(st.integers(0, 5))] = draw(st.binary(max_size=5))
    return bytes(content)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch") / "model.safetensors"


@settings(max_examples=300, deadline=None)
@given(
    content=st.binary(max_size=200)
    | damaged()
    | st.builds(raw, HEADERS, st.binary(max_size=40))
    | st.builds(raw, st.builds(lambda more: GOOD | more, HEADERS))
    | st.builds(raw, st.just(GOOD), st.binary(max_size=40), NUMBERS.filter(lambda n: 0 <= n < 2**64))
)
def test_whatever_the_file_holds(scratch: Path, content: bytes) -> None:
    scratch.write_bytes(content)
    try:
        infos = read_header(scratch)
    except CheckpointError:
        return
    covered = bytearray(len(content))
    for name, info in infos.items():
        assert info.name == name and info.nbytes == math.prod(info.shape) * safetensors.ITEM_SIZE[info.dtype]
        assert info.offset >= 8 and info.offset + info.nbytes <= len(content)
        for i in range(info.offset, info.offset + info.nbytes):
            covered[i] += 1
    assert max(covered, default=0) <= 1
    found = Checkpoint("x", scratch.parent, {}, "{}", infos, {})
    for info in infos.values():
        assert found.read_bytes(info).tobytes() == content[info.offset : info.offset + info.nbytes]


def test_the_same_tensors_as_the_library_reads(llama: Path, sharded: Path) -> None:
    one, three = open_folder(llama), open_folder(sharded)
    expected = load_file(llama / "model.safetensors")
    assert set(one.tensors) == set(three.tensors) == set(expected) == set(models.shapes(dict(one.config)))
    assert len(one.files) == 1 and len(three.files) == 3
    for name, tensor in expected.items():
        for found in (one, three):
            read = found.read(name)
            assert read.dtype == tensor.dtype and torch.equal(read, tensor)
            pieces = np.concatenate(list(found.chunks(found.info(name))))
            assert pieces.tobytes() == tensor.view(torch.uint8).numpy().tobytes()
    with pytest.raises(CheckpointError, match=r"tensor x\.weight is missing"):
        one.read("x.weight")


def test_the_survey_hashes_whole_files(sharded: Path) -> None:
    steps: list[int] = []
    found = open_folder(sharded)
    assert found.survey(steps.append) == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sharded.glob("*.safetensors")
    }
    assert sum(steps) == sum(info.nbytes for info in found.tensors.values())


def test_the_survey_hashes_what_lies_between_tensors(file: Path) -> None:
    header = {"a": {"dtype": "U8", "shape": [3], "data_offsets": [4, 7]}, "b": GOOD["b"]}
    for data in (b"0123" + b"abc" + bytes(15) + b"end", b"0123" + b"abc" + bytes(15) + b"END"):
        file.write_bytes(raw(header, data))
        found = Checkpoint("x", file.parent, {}, "{}", read_header(file), {})
        assert found.survey() == {file.name: hashlib.sha256(file.read_bytes()).hexdigest()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_survey_names_what_is_not_a_number(
    file: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, value: float
) -> None:
    monkeypatch.setattr(safetensors, "CHUNK", 64)
    largest = torch.full((100,), torch.finfo(dtype).max, dtype=dtype)
    wrong = largest.clone()
    wrong[77] = value
    integers = torch.full((100,), -1, dtype=torch.int32)
    for tensors in ({"a": largest, "b": integers}, {"a": largest, "b": wrong}):
        save_file(tensors, file)
        found = Checkpoint("x", file.parent, {}, "{}", read_header(file), {})
        if tensors["b"] is integers:
            found.survey()
            continue
        with pytest.raises(NumericError, match="tensor b holds NaN or Inf"):
            found.survey()


def test_a_file_that_shrinks_while_it_is_read(file: Path) -> None:
    file.write_bytes(raw(GOOD))
    found = Checkpoint("x", file.parent, {}, "{}", read_header(file), {})
    file.write_bytes(raw(GOOD)[:-8])
    for read in (lambda: found.read_bytes(found.info("b")), lambda: list(found.chunks(found.info("b"))), found.survey):
        with pytest.raises(CheckpointError, match="ends too early"):
            read()


@pytest.mark.parametrize("value", [0, 1, 10])
def test_side_files_have_a_limit(copied: Path, monkeypatch: pytest.MonkeyPatch, value: int) -> None:
    assert set(open_folder(copied).side_files) == {"generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    monkeypatch.setattr(safetensors, "SIDE_FILE_LIMIT", value)
    with pytest.raises(CheckpointError, match="larger than any such file"):
        open_folder(copied)


def test_folders_among_the_side_files_are_passed_over(copied: Path) -> None:
    (copied / "tokenizer_old").mkdir()
    (copied / "README.md").write_text("x")
    (copied / "LICENSE").write_text("MIT")
    assert sorted(open_folder(copied).side_files) == [
        "LICENSE",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_a_checkpoint_without_tensors(copied: Path) -> None:
    (copied / "model.safetensors").write_bytes(raw({}, b""))
    with pytest.raises(CheckpointError, match="holds no tensors"):
        open_folder(copied)
    (copied / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    with pytest.raises(CheckpointError, match="holds no tensors"):
        open_folder(copied)


def test_shards_that_hold_the_same_tensor(sharded: Path, tmp_path: Path) -> None:
    """The index says which one is meant; a second copy elsewhere must not take its place unnoticed."""
    found = open_folder(sharded)
    folder = tmp_path / "twice"
    folder.mkdir()
    for path in sharded.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    name, last = "model.embed_tokens.weight", "model-00003-of-00003.safetensors"
    save_file({**load_file(sharded / last), name: found.read(name) * 2}, folder / last)
    with pytest.raises(CheckpointError, match="but it does not"):
        open_folder(folder)


VALUES = st.integers(-2, 600) | st.sampled_from([2**31, 2**63, 10**30, True, 1.5, "x", None]) | JSON


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkpoint]:
    yield open_folder(models.write_model(tmp_path_factory.mktemp("whole") / "model", "qwen3", tied=True))


@settings(max_examples=200, deadline=None)
@given(changes=st.dictionaries(st.sampled_from([*models.config("qwen3"), "quantization_config"]), VALUES, max_size=4))
def test_whatever_the_config_says(whole: Checkpoint, changes: dict[str, Any]) -> None:
    config = {**whole.config, **changes}
    given_config = Checkpoint("x", whole.folder, config, json.dumps(config), whole.tensors, whole.side_files)
    try:
        made = planner.make(given_config, Recipe(group_size=32, seq_len=64))
        made.as_dict()
        made.require()
    except R1QuantError as error:
        assert len(str(error).split("\n")) == 2

"""A GGUF file that is only partly here: its header answers fit and inspect; what needs weights refuses it as ever."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1quant.checkpoint.gguf.source import open_gguf
from r1quant.errors import CheckpointError
from r1quant.jobs.fit.model import outline
from r1quant.jobs.inspect import inspect
from tests.checkpoint.gguf_files import metadata, smollm_path, tensors, write
from tests.conftest import Run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("whole") / "m.gguf", "llama", metadata("llama"), tensors("llama"))


def data_start(path: Path) -> int:
    return min(info.offset for info in open_gguf(path).tensors.values())


def cut(path: Path, length: int, folder: Path) -> Path:
    """The first bytes of a file, in a folder of their own."""
    folder.mkdir(exist_ok=True)
    (folder / path.name).write_bytes(path.read_bytes()[:length])
    return folder / path.name


def test_fit_and_inspect_answer_from_the_header(whole: Path, tmp_path: Path, run: Run) -> None:
    size = whole.stat().st_size
    for length in (data_start(whole), size - 1):
        part = cut(whole, length, tmp_path / str(length))
        told, full = run("inspect", part, "--json").json, run("inspect", whole, "--json").json
        assert told["missing_bytes"] == size - length and full["missing_bytes"] == 0 and full["notes"] == []
        assert told["bytes"] == length and len(told["notes"]) == 1 and "m is only partly here" in told["notes"][0]
        same = set(full) - {"model", "bytes", "missing_bytes", "notes"}
        assert {key: told[key] for key in same} == {key: full[key] for key in same}
        fitted, complete = (run("fit", path, "--gpu", "L4", "--json").json for path in (part, whole))
        assert fitted["rows"] == complete["rows"] and fitted["recommendation"] == complete["recommendation"]
        assert fitted["model"]["missing_bytes"] == size - length and complete["model"]["missing_bytes"] == 0
        assert fitted["notes"] == [*told["notes"], *complete["notes"]]
        shown = run("fit", part, "--gpu", "L4")
        assert shown.code == 0 and f"note: {told['notes'][0]}" in shown.err.replace("\n", " ")


@pytest.mark.parametrize(
    "words",
    [
        ("quantize", "PART", "--bits", "4", "-o", "out"),
        ("plan", "PART", "--bits", "4"),
        ("export", "PART", "--to", "gguf", "-o", "out"),
        ("verify", "PART", "--baseline", "WHOLE"),
        ("check", "PART", "WHOLE"),
        ("bench", "PART"),
    ],
)
def test_what_needs_weights_refuses_it(
    words: tuple[str, ...], whole: Path, tmp_path: Path, run: Run, in_tmp: Path
) -> None:
    part = cut(whole, whole.stat().st_size - 100, tmp_path / "part")
    ran = run(*({"PART": part, "WHOLE": whole}.get(word, word) for word in words), "--json")
    assert ran.code == 3 and "the file is truncated: " in ran.json["error"]["message"]
    assert "download it again" in ran.json["error"]["hint"]
    assert not (in_tmp / "out").exists() and not (in_tmp / "out.run").exists()


def test_a_header_that_is_cut_is_refused(whole: Path, tmp_path: Path) -> None:
    start = data_start(whole)
    for length in (10, 100, start // 2, start - 64):
        part = cut(whole, length, tmp_path / str(length))
        for job in (inspect, outline):
            with pytest.raises(CheckpointError):
                job(part)


def test_blocks_with_offsets_are_not_read_where_they_are_missing(tmp_path: Path) -> None:
    """Which Q4_1 linears are integers, only their data say: those that are there count, the others do not."""
    source = smollm_path()
    full = inspect(source)
    header = data_start(source)
    part = cut(source, header + (source.stat().st_size - header) // 2, tmp_path / "half")
    half = inspect(part)
    assert half["parameters"] == full["parameters"] and half["linears"] == full["linears"]
    assert half["missing_bytes"] == source.stat().st_size - part.stat().st_size


def test_rotary_factors_that_are_missing_decide_too_much(tmp_path: Path) -> None:
    arrays = {**tensors("llama"), "rope_freqs.weight": np.ones(8, np.float32)}
    path = write(tmp_path / "m.gguf", "llama", metadata("llama"), arrays)
    part = cut(path, path.stat().st_size - 64, tmp_path / "part")
    with pytest.raises(CheckpointError, match="ends before"):
        inspect(part)


def test_parts_must_all_be_there_but_not_be_complete(tmp_path: Path) -> None:
    arrays = tensors("llama")
    names = list(arrays)
    groups = names[:5], names[5:]
    paths = []
    for number, group in enumerate(groups):
        split = {"split.no": number, "split.count": 2, "split.tensors.count": len(names)}
        path = tmp_path / f"m-{number + 1:05d}-of-00002.gguf"
        paths.append(write(path, "llama", {**metadata("llama"), **split}, {name: arrays[name] for name in group}))
    full = inspect(paths[0])
    assert full["files"] == 2
    paths[1].write_bytes(paths[1].read_bytes()[:-40])
    told = inspect(paths[0])
    assert told["missing_bytes"] == 40 and told["parameters"] == full["parameters"]
    paths[1].unlink()
    with pytest.raises(CheckpointError, match=r"m-00002-of-00002\.gguf of the model is missing"):
        inspect(paths[0])


@settings(deadline=None, max_examples=40)
@given(cut_at=st.floats(0, 1))
def test_what_is_missing_adds_up(cut_at: float, whole: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    size, start = whole.stat().st_size, data_start(whole)
    length = start + round(cut_at * (size - start))
    part = cut(whole, length, tmp_path_factory.mktemp("cut") / "m")
    assert open_gguf(part, partial=True).missing_bytes == size - length
    if length < size:
        with pytest.raises(CheckpointError, match="the file is truncated"):
            open_gguf(part)

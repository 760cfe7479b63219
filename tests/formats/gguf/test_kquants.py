"""Requantization by llama.cpp: what it writes, that importance changes it for the better, and how it fails."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from r1quant.errors import CheckpointError, MissingDependency, NumericError, R1QuantError, RecipeError
from r1quant.formats.gguf import imatrix, kquants
from r1quant.formats.gguf.kquants import Requantized, requantize
from tests.checkpoint import gguf_files
from tests.llamacpp import LAYERS, dequantized, write_floats

needs_llama_cpp = pytest.mark.usefixtures("llama_cpp")
LINEARS = 7 * LAYERS


def importance_of(path: Path, seed: int = 3) -> dict[str, np.ndarray]:
    """Channels of very different size, as activations have them."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, weight in dequantized(path).items():
        if name.startswith("blk.") and weight.ndim == 2:
            found[name] = np.exp(2 * rng.standard_normal(weight.shape[1])).astype(np.float32)
    return found


def weighted_errors(done: Requantized, source: Path, importance: dict[str, np.ndarray]) -> dict[str, float]:
    before, after = dequantized(source), dequantized(done.path)
    return {
        name: float((((before[name] - after[name]).astype(np.float64) ** 2) * importance[name]).sum())
        for name in importance
    }


@needs_llama_cpp
@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K_M", "Q4_K_M", "Q4_K_S", "Q5_K_M", "Q5_K_S", "Q6_K", "IQ4_XS", "IQ4_NL"])
def test_importance_lowers_the_weighted_error(kind: str, floats: Path, tmp_path: Path) -> None:
    importance = importance_of(floats)
    plain = requantize(floats, tmp_path / "plain.gguf", kind, threads=1)
    weighted = requantize(floats, tmp_path / "weighted.gguf", kind.lower(), importance, threads=1)
    assert weighted.type == kind and set(weighted.unweighted) == {"token_embd.weight", "output.weight"}
    assert plain.unweighted == () and not plain.fallbacks and not weighted.fallbacks
    before, after = (weighted_errors(done, floats, importance) for done in (plain, weighted))
    same = [name for name in importance if plain.tensors[name] == weighted.tensors[name]]
    assert len(same) >= LINEARS - 1  # of mixtures that spend fewer bits if there is importance
    for name in same:
        assert after[name] < before[name], name
    assert sum(after[name] for name in same) < 0.95 * sum(before[name] for name in same)


@needs_llama_cpp
def test_a_matrix_read_from_a_file_gives_the_same_bytes(floats: Path, tmp_path: Path) -> None:
    """Sums and counts on disk, means in llama.cpp's hands."""
    means = importance_of(floats)
    counts = dict.fromkeys(means, 64)
    imatrix.write(tmp_path / "i.gguf", {n: v * np.float32(64) for n, v in means.items()}, counts, ["t"], 1, 64)
    stored = imatrix.read(tmp_path / "i.gguf").means()
    requantize(floats, tmp_path / "a.gguf", "Q4_K_M", means, threads=1)
    requantize(floats, tmp_path / "b.gguf", "Q4_K_M", stored, threads=2)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


@needs_llama_cpp
@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
def test_simple_types_are_those_of_the_gguf_package(kind: str, floats: Path, tmp_path: Path) -> None:
    done = requantize(floats, tmp_path / "out.gguf", kind, embedding=kind, head=kind)
    target = gguf.GGMLQuantizationType[kind]
    source, checked = dequantized(floats), 0
    for tensor in gguf.GGUFReader(done.path).tensors:
        if tensor.tensor_type == target:
            assert (tensor.data == gguf.quants.quantize(source[tensor.name], target)).all(), tensor.name
            checked += 1
    assert checked == LINEARS + 2 and done.types[kind] == checked
    assert done.bytes == done.path.stat().st_size


@needs_llama_cpp
def test_types_and_steps_are_reported(floats: Path, tmp_path: Path) -> None:
    begun: list[str] = []
    done = requantize(floats, tmp_path / "out.gguf", "Q4_K_M", embedding="Q8_0", step=begun.append)
    tensors = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(done.path).tensors}
    assert dict(done.tensors) == tensors and sorted(begun) == sorted(tensors)
    assert tensors["token_embd.weight"] == "Q8_0" and tensors["output.weight"] == "Q6_K"
    assert tensors["blk.0.attn_q.weight"] == "Q4_K" and tensors["output_norm.weight"] == "F32"
    shown = done.as_dict()
    assert shown["types"] == done.types and sum(done.types.values()) == len(tensors)
    assert {"Q4_K", "Q6_K"} <= done.types.keys()


@needs_llama_cpp
@pytest.mark.parametrize("tied", [True, False])
def test_columns_that_no_super_block_fits_are_named(tied: bool, tmp_path: Path) -> None:
    source = write_floats(tmp_path / "odd.gguf", hidden=192, inner=512, tied=tied)
    done = requantize(source, tmp_path / "out.gguf", "Q4_K_M")
    fits = {f"blk.{i}.ffn_down.weight" for i in range(LAYERS)}
    two_dimensional = {name for name, weight in dequantized(source).items() if weight.ndim == 2}
    untied = set() if tied else {"token_embd.weight"}
    assert set(done.fallbacks) == two_dimensional - fits
    assert {done.fallbacks[name] for name in untied} <= {"Q5_0"}
    assert done.fallbacks["token_embd.weight" if tied else "output.weight"] == "Q8_0"
    assert done.fallbacks["blk.0.attn_q.weight"] == "Q5_0" and done.tensors["blk.0.ffn_down.weight"] in ("Q4_K", "Q6_K")
    assert not requantize(source, tmp_path / "out8.gguf", "Q8_0").fallbacks


def damaged(source: Path, to: Path) -> Path:
    """One weight of NaN."""
    shutil.copy(source, to)
    tensor = next(t for t in gguf.GGUFReader(source).tensors if t.name == "blk.1.ffn_gate.weight")
    with to.open("rb+") as file:
        file.seek(int(tensor.data_offset))
        file.write(np.array([np.nan], np.float32).tobytes())
    return to


@needs_llama_cpp
def test_failures_leave_nothing_behind(floats: Path, tmp_path: Path) -> None:
    bad, folder = damaged(floats, tmp_path / "nan.gguf"), tmp_path / "out"
    folder.mkdir()
    with pytest.raises(NumericError, match=r"blk\.1\.ffn_gate\.weight"):
        requantize(bad, folder / "out.gguf", "Q4_K_M")
    (folder / "kept.gguf").write_bytes(b"older")
    with pytest.raises(NumericError):
        requantize(bad, folder / "kept.gguf", "Q8_0")
    assert [path.name for path in folder.iterdir()] == ["kept.gguf"]
    assert (folder / "kept.gguf").read_bytes() == b"older"


@needs_llama_cpp
def test_an_unknown_architecture_is_llama_cpps_error(floats: Path, tmp_path: Path) -> None:
    source = gguf_files.write(tmp_path / "x.gguf", "nosuch", {}, {"a.weight": np.ones((32, 256), np.float32)})
    with pytest.raises(CheckpointError, match="unknown model architecture") as caught:
        requantize(source, tmp_path / "out.gguf", "Q4_K_M")
    assert "\n" not in caught.value.message and "\n" not in caught.value.hint
    assert not (tmp_path / "out.gguf").exists()


@needs_llama_cpp
@pytest.mark.skipif(sys.platform != "linux", reason="finds the child in /proc")
def test_a_child_that_dies_is_an_error(floats: Path, tmp_path: Path) -> None:
    def kill(_: str) -> None:
        me = str(os.getpid())
        for entry in Path("/proc").glob("[0-9]*/stat"):
            fields = entry.read_text().rpartition(")")[2].split()
            if fields[1] == me and b"kquants" in (entry.parent / "cmdline").read_bytes():
                os.kill(int(entry.parent.name), signal.SIGABRT)

    with pytest.raises(CheckpointError, match="died of SIGABRT"):
        requantize(floats, tmp_path / "out.gguf", "Q4_K_M", step=kill)
    assert not list(tmp_path.iterdir())


@needs_llama_cpp
def test_an_interruption_ends_the_child_and_leaves_nothing(floats: Path, tmp_path: Path) -> None:
    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        requantize(floats, tmp_path / "out.gguf", "Q4_K_M", step=interrupt)
    assert not list(tmp_path.iterdir())


@needs_llama_cpp
def test_what_cannot_be_is_refused_before_llama_cpp_runs(
    floats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow = write_floats(tmp_path / "narrow.gguf", hidden=192)
    quantized = requantize(floats, tmp_path / "quantized.gguf", "Q8_0").path
    name = "blk.0.attn_q.weight"
    monkeypatch.setattr(subprocess, "Popen", None)
    cases: list[tuple[dict[str, object], str]] = [
        ({"type": "Q4_K_XXL"}, "is not one of llama.cpp's mixtures"),
        ({"embedding": "Q9"}, "is not a type for token_embd.weight"),
        ({"source": quantized}, "is quantized already"),
        ({"source": narrow, "head": "Q6_K"}, "has 192 columns, and Q6_K needs a multiple of 256"),
        ({"importance": {name: np.ones(5, np.float32)}}, "is not 256 finite numbers"),
        ({"importance": {name: np.full(256, np.nan, np.float32)}}, "is not 256 finite numbers"),
        ({"importance": {"blk.9.attn_q.weight": np.ones(256, np.float32)}}, "no such tensor"),
        ({"target": tmp_path / "none" / "out.gguf"}, "there is no folder"),
    ]
    for options, message in cases:
        given = {"source": floats, "target": tmp_path / "out.gguf", "type": "Q4_K_M"} | options
        with pytest.raises(RecipeError, match=message):
            requantize(**given)  # type: ignore[arg-type]
    assert {path.name for path in tmp_path.iterdir()} == {"narrow.gguf", "quantized.gguf"}


def test_without_llama_cpp_the_install_line_is_given(
    floats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency) as caught:
        requantize(floats, tmp_path / "out.gguf", "Q4_K_M")
    assert caught.value.exit_code == 4 and caught.value.hint == "pip install 'r1quant[llamacpp]'"


def test_every_error_is_two_lines(floats: Path) -> None:
    lines = ["llama_model_quantize: failed to quantize: basic_ios::clear: iostream error"]
    for code, said in ((1, lines), (1, []), (-11, ["a", "b"]), (4, ["libgomp.so.1: cannot open"]), (-99, [])):
        error = kquants._failure("x.gguf", code, said)
        assert isinstance(error, R1QuantError) and str(error).count("\n") == 1


@needs_llama_cpp
def test_each_tensor_gets_the_type_that_is_asked_for(floats: Path, tmp_path: Path) -> None:
    kinds = ("Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
    names = [name for name, tensor in dequantized(floats).items() if tensor.ndim == 2]
    wanted = {name: kinds[number % len(kinds)] for number, name in enumerate(names)}
    done = requantize(floats, tmp_path / "out.gguf", "Q4_K_M", threads=1, types=wanted)
    assert {name: done.tensors[name] for name in names} == wanted and not done.fallbacks
    some = {"blk.1.attn_v.weight": "Q8_0", "output.weight": "Q4_K"}
    stock = requantize(floats, tmp_path / "stock.gguf", "Q4_K_M", threads=1)
    mixed = requantize(floats, tmp_path / "some.gguf", "Q4_K_M", threads=1, types=some)
    assert mixed.tensors == {**stock.tensors, **some}
    with pytest.raises(RecipeError, match=r"'Q9_K' is not a type for output\.weight"):
        requantize(floats, tmp_path / "no.gguf", "Q4_K_M", types={"output.weight": "Q9_K"})

"""The importance matrix as a file: golden bytes, the gguf package's reader, ggml's own reader, and damage."""

from __future__ import annotations

import ctypes
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest

from r1quant.errors import CheckpointError
from r1quant.formats.gguf import imatrix

SUMS: dict[str, npt.NDArray[Any]] = {
    "blk.10.attn_q.weight": np.array([4.0, 0.5, 3.25], np.float64),
    "blk.0.ffn_down.weight": np.array([2.0, 0.0, 8.0, 1e-20, 6.5], np.float32),
}
COUNTS = {"blk.10.attn_q.weight": 4, "blk.0.ffn_down.weight": 0}


def write(path: Path) -> Path:
    imatrix.write(path, SUMS, COUNTS, ["wiki.txt", "math.txt"], chunk_count=3, chunk_size=512)
    return path


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def test_golden_bytes(tmp_path: Path) -> None:
    """The one file that llama.cpp's save_imatrix would write: keys and tensors in its order, padded to 32 bytes."""
    path = tmp_path / "imatrix.gguf"
    imatrix.write(path, {"blk.0.attn_q.weight": np.array([1.0, 2.0])}, {"blk.0.attn_q.weight": 7}, ["t"], 2, 512)
    head = b"GGUF" + struct.pack("<IQQ", 3, 2, 4)
    head += text("general.type") + struct.pack("<I", 8) + text("imatrix")
    head += text("imatrix.datasets") + struct.pack("<IIQ", 9, 8, 1) + text("t")
    head += text("imatrix.chunk_count") + struct.pack("<II", 4, 2)
    head += text("imatrix.chunk_size") + struct.pack("<II", 4, 512)
    head += text("blk.0.attn_q.weight.in_sum2") + struct.pack("<IQIQ", 1, 2, 0, 0)
    head += text("blk.0.attn_q.weight.counts") + struct.pack("<IQIQ", 1, 1, 0, 32)
    head += bytes(-len(head) % 32)
    data = struct.pack("<2f", 1.0, 2.0) + bytes(24) + struct.pack("<f", 7.0) + bytes(28)
    assert path.read_bytes() == head + data


def test_what_is_written_is_read(tmp_path: Path) -> None:
    found = imatrix.read(write(tmp_path / "imatrix.gguf"))
    assert found.datasets == ("wiki.txt", "math.txt") and (found.chunk_count, found.chunk_size) == (3, 512)
    assert found.counts == COUNTS and found.sums.keys() == SUMS.keys()
    for name, sums in SUMS.items():
        assert found.sums[name].dtype == np.float32 and (found.sums[name] == sums.astype(np.float32)).all()
    means = found.means()
    assert means["blk.10.attn_q.weight"].tolist() == [1.0, 0.125, 0.8125]
    assert means["blk.0.ffn_down.weight"].tolist() == [1.0] * 5  # never used: every channel counts the same
    assert list(tmp_path.iterdir()) == [tmp_path / "imatrix.gguf"]


def test_the_gguf_package_reads_it(tmp_path: Path) -> None:
    reader = gguf.GGUFReader(write(tmp_path / "imatrix.gguf"))
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.datasets"].contents() == ["wiki.txt", "math.txt"]
    assert reader.fields["imatrix.chunk_count"].contents() == 3
    assert reader.fields["imatrix.chunk_size"].contents() == 512
    names = [tensor.name for tensor in reader.tensors]
    assert names == [
        f"blk.{stem}.weight.{kind}" for stem in ("0.ffn_down", "10.attn_q") for kind in ("in_sum2", "counts")
    ]
    found = {tensor.name: tensor.data for tensor in reader.tensors}
    for name, sums in SUMS.items():
        assert (found[f"{name}.in_sum2"] == sums.astype(np.float32)).all()
        assert found[f"{name}.counts"].tolist() == [COUNTS[name]]


@pytest.mark.usefixtures("llama_cpp")
def test_ggml_reads_it(tmp_path: Path) -> None:
    """With the functions that llama.cpp's common_imatrix_load calls."""
    from llama_cpp._ggml import libggml

    class Params(ctypes.Structure):
        _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.POINTER(ctypes.c_void_p)))

    pointer = ctypes.c_void_p

    def call(name: str, result: object, *arguments: object) -> object:
        function = getattr(libggml, name)
        function.restype = result
        return function(*arguments)

    context, path = pointer(), str(write(tmp_path / "i.gguf")).encode()
    opened = call("gguf_init_from_file", pointer, path, Params(False, ctypes.pointer(context)))
    assert opened
    held = pointer(opened)  # type: ignore[arg-type]
    assert call("gguf_get_n_tensors", ctypes.c_int64, held) == 4
    for key, expected in ((b"imatrix.chunk_count", 3), (b"imatrix.chunk_size", 512)):
        found = call("gguf_find_key", ctypes.c_int64, held, key)
        assert call("gguf_get_val_u32", ctypes.c_uint32, held, ctypes.c_int64(found)) == expected  # type: ignore[arg-type]
    for name, sums in SUMS.items():
        for suffix, values in ((".in_sum2", sums), (".counts", np.array([COUNTS[name]]))):
            tensor = pointer(call("ggml_get_tensor", pointer, context, f"{name}{suffix}".encode()))  # type: ignore[arg-type]
            assert call("ggml_nelements", ctypes.c_int64, tensor) == len(values)
            data = call("ggml_get_data_f32", ctypes.POINTER(ctypes.c_float), tensor)
            assert data[: len(values)] == np.asarray(values, np.float32).tolist()  # type: ignore[index]
    call("gguf_free", None, held)
    call("ggml_free", None, context)


@pytest.mark.parametrize(
    "sums",
    [{}, {"a": np.array([1.0, np.nan])}, {"a": np.array([1.0, -1.0])}, {"a": np.ones((2, 2))}, {"a": np.ones(0)}],
    ids=["nothing", "nan", "negative", "matrix", "empty"],
)
def test_what_is_no_importance_is_not_written(sums: dict[str, np.ndarray], tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        imatrix.write(tmp_path / "i.gguf", sums, dict.fromkeys(sums, 1), ["t"], 1, 1)
    assert not list(tmp_path.iterdir())


def test_every_damage_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "i.gguf")
    whole = path.read_bytes()
    for length in range(0, len(whole) - 32, 13):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            imatrix.read(path)
    for before, after in ((b".counts", b".county"), (text("imatrix"), text("matrixi")), (b"wiki", b"\xff\xff\xff\xff")):
        assert before in whole
        path.write_bytes(whole.replace(before, after))
        with pytest.raises(CheckpointError):
            imatrix.read(path)
    path.write_bytes(whole.replace(struct.pack("<f", 3.25), struct.pack("<f", np.nan)))
    with pytest.raises(CheckpointError, match="NaN"):
        imatrix.read(path)


def test_a_model_is_not_an_importance_matrix(floats: Path) -> None:
    with pytest.raises(CheckpointError, match="not an importance matrix"):
        imatrix.read(floats)

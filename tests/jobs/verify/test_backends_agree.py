"""One grid in three runtimes: they agree where they compute in float32, and each shows a fault in the weights."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import r1quant

AGREE = 1e-4  # nats
TEXT: dict[str, Any] = {"windows": 4, "seq_len": 128}
BACKENDS = ("torch", "onnxruntime", "llamacpp")
Form = Callable[[Path, str, Path], Path]


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny-r1 in 4 bits."""
    out = tmp_path_factory.mktemp("agree") / "w4"
    r1quant.quantize("tiny-r1", out, method="rtn", bits=4, group_size=64)
    return out


@pytest.fixture(scope="module")
def faulty(quantized: Path) -> Path:
    """The same, but for one scale of one row in one layer, which is twice as large."""
    folder = shutil.copytree(quantized, quantized.with_name("faulty"))
    tensors = load_file(folder / "model.safetensors")
    scales = tensors["model.layers.2.mlp.down_proj.scales"]
    row, group = np.unravel_index(np.abs(scales.astype(np.float32)).argmax(), scales.shape)
    scales[row, group] *= 2
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def form(source: Path, backend: str) -> Path:
    """The export that the backend runs, in float32: llama.cpp rounds activations where weights are in blocks."""
    if backend == "torch":
        return source
    if backend == "llamacpp" and importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("llama-cpp-python is not installed: its build takes long")
    out = source.with_name(f"{source.name}-{backend}")
    if not out.exists():
        options: dict[str, Any] = {"dtype": "float32"} if backend == "onnxruntime" else {"type": "f32"}
        r1quant.export(source, "onnx" if backend == "onnxruntime" else "gguf", out, **options)
    return out


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_runtimes_agree_on_one_grid(quantized: Path, backend: str) -> None:
    record = r1quant.verify(form(quantized, backend), quantized, backend=backend, **TEXT).as_dict()
    assert record["backend"] == backend and record["kl_estimator"] == "exact"
    assert 0 <= record["kl"]["mean"] < AGREE / 10  # llama.cpp keeps keys and values in float16
    assert abs(record["perplexity"]["ratio"] - 1) < 1e-3 and record["top1"] > 0.995


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_wrong_scale_is_caught_by_the_gate(quantized: Path, faulty: Path, backend: str) -> None:
    gate = ("kl.mean<2e-6",)
    caught = r1quant.verify(form(faulty, backend), quantized, backend=backend, gate=gate, **TEXT)
    assert not caught.passed and caught.numbers()["kl.mean"] > 1e-5, caught.scores
    if backend != "torch":
        sound = r1quant.verify(form(quantized, backend), quantized, backend=backend, gate=gate, **TEXT)
        assert sound.passed, sound.scores

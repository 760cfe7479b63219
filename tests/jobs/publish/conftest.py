"""tiny-r1 quantized, measured and exported, in one folder; and a Hub of the tests' own."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import r1quant
from r1quant.jobs.bench.options import BenchOptions
from r1quant.jobs.bench.run import bench
from r1quant.jobs.setup import Setup
from tests.jobs.publish.hub import Hub

TOKEN = "hf_" + "t" * 34


@dataclass(frozen=True)
class Made:
    """out: a folder with gptq/, onnx/ and gguf/; record: what verify wrote of the first; beside it that of bench."""

    out: Path
    record: Path


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Only to be read; `own` is a copy."""
    folder = tmp_path_factory.mktemp("made")
    out = folder / "tiny"
    out.mkdir()
    r1quant.quantize("tiny-r1", out / "gptq", method="rtn", bits=4, group_size=32)
    r1quant.export(out / "gptq", "onnx", out / "onnx")
    r1quant.export(out / "gptq", "gguf", out / "gguf")
    verified = r1quant.verify(out / "gptq", windows=4, seq_len=32, gate=("kl.mean<1", "top1>0.1"))
    record = folder / "verified.json"
    record.write_text(json.dumps(verified.as_dict()), "utf-8")
    timed = bench(out / "gptq", "none", Setup(device="cpu"), BenchOptions((8,), (4,), repeats=2, warm_up=0))
    (folder / "timed.json").write_text(json.dumps(timed.as_dict()), "utf-8")
    return Made(out, record)


@pytest.fixture
def own(made: Made, tmp_path: Path) -> Made:
    """One model alone, in a folder that may be changed, its record beside it."""
    shutil.copytree(made.out / "gptq", tmp_path / "tiny")
    shutil.copy(made.record, tmp_path / "verified.json")
    return Made(tmp_path / "tiny", tmp_path / "verified.json")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """huggingface_hub talks to it, by the protocol that needs no hf-xet, and waits for nothing between two attempts."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    with Hub(TOKEN) as server:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        _http.close_session()
        yield server
        _http.close_session()

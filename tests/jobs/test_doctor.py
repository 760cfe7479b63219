"""doctor: what is there is really tried, what is not comes with the line that installs it, and secrets stay secret."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from r1quant.core.platforms import platform_line
from r1quant.extras import EXTRAS
from r1quant.hardware import detect
from r1quant.jobs import doctor as job
from tests import models
from tests.conftest import Run


def test_all_that_is_asked_for(run: Run, in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = in_tmp / "kept"
    (kept / "answers").mkdir(parents=True)
    (kept / "answers" / "a").write_bytes(bytes(1000))
    (kept / "link").symlink_to(kept / "answers" / "a")
    monkeypatch.setenv("R1QUANT_CACHE", str(kept))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_HOME", str(in_tmp / "hf"))
    monkeypatch.setenv("HF_ENDPOINT", "https://me:hf_secret@mirror")
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    driver = "NVIDIA H200, 143771\n"
    monkeypatch.setattr(detect, "_output_of", lambda *words: driver if words[0] == "nvidia-smi" else "")
    ran = run("doctor", "--json")
    found = ran.json
    assert ran.code == 0 and found["broken"] == [] and "hf_secret" not in ran.out
    assert found["backends"]["torch"]["works"] and found["backends"]["torch"]["version"]
    assert set(found["backends"]) == {"torch", "onnxruntime", "llamacpp", "openai"}
    assert set(found["extras"]) == set(EXTRAS)
    assert found["machine"]["gpus"] == [{"name": "NVIDIA H200", "memory_bytes": 143771 << 20}]
    assert found["environment"]["HF_TOKEN"] == "set" and found["environment"]["R1QUANT_CACHE"] == str(kept)
    assert found["caches"]["r1quant"] == {"path": str(kept), "bytes": 1000}
    assert found["caches"]["hub"] == {"path": str(in_tmp / "hf" / "hub"), "bytes": 0}
    shown = run("doctor")
    assert "NVIDIA H200, 151 GB" in shown.out and "backend torch" in shown.out and "1 kB" in shown.out


def test_an_extra_that_is_missing_and_one_that_does_not_load(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    real, versions = importlib.import_module, {"llama-cpp-python": "1", "openai": ""}

    def broken(name: str, package: str | None = None) -> object:
        if name in ("llama_cpp", "openai"):
            raise OSError("libgomp.so.1: cannot open shared object file\nmore")
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", broken)
    monkeypatch.setattr(job, "version", lambda name: versions.get(name, "1"))
    ran = run("doctor", "--json")
    found = ran.json
    assert ran.code == 0 and not found["backends"]["llamacpp"]["works"]
    lines = [line for line in found["advice"] if "llamacpp" in line]
    assert lines == [
        "llamacpp is installed, but does not load: libgomp.so.1: cannot open shared object file; "
        "pip install --force-reinstall 'r1quant[llamacpp]'"
    ]
    assert any(line.endswith("pip install 'r1quant[server]'") for line in found["advice"])
    assert not found["extras"]["server"]["installed"] and found["extras"]["llamacpp"]["installed"]


def test_a_broken_installation_is_an_exit_code(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "version", lambda name: "" if name == "numba" else "1")
    ran = run("doctor", "--json")
    assert ran.code == 1 and ran.json["broken"] == ["numba is not installed"]
    assert any("pip install --force-reinstall r1quant" in line for line in ran.json["advice"])


def test_how_far_this_system_is_tested_is_said(run: Run) -> None:
    line = job.diagnose().machine.platform
    assert line == platform_line() and line.startswith(job.diagnose().machine.system)
    shown = run("doctor")
    assert "platform" in shown.out and line.split(":")[0] in shown.out


def test_a_model_without_a_tokenizer_is_advised_on(run: Run, in_tmp: Path) -> None:
    models.write_model(in_tmp / "m", "llama")
    for path in (in_tmp / "m").glob("tokenizer*"):
        path.unlink()
    diagnosis = job.diagnose(in_tmp / "m")
    assert diagnosis.model is not None and diagnosis.model.model_type == "llama"
    assert any("no tokenizer.json" in line for line in diagnosis.advice)
    assert "model" not in job.doctor() and job.doctor(in_tmp / "m")["model"]["model_type"] == "llama"

"""export, check, doctor and the runtimes of plan, as a user meets them."""

from __future__ import annotations

import json
import math
import shutil
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from r1quant.planning import targets
from r1quant.registry import FORMATS
from tests import models
from tests.conftest import Run

RTN = ("--method", "rtn", "--group-size", "32")


@pytest.fixture
def out(run: Run, copied: Path) -> Path:
    assert run("quantize", copied, *RTN, "-o", "model-gptq-w4").code == 0
    return Path("model-gptq-w4")


def test_export_names_its_outputs_after_source_and_format(run: Run, out: Path, in_tmp: Path) -> None:
    ran = run("export", "--to", "awq, gguf,onnx")
    assert ran.code == 0, ran.err
    assert {"model-w4-awq", "model-w4-gguf", "model-w4-onnx"} <= {path.name for path in in_tmp.iterdir()}
    assert ran.out.count("exact") == 3 and "peak memory" in ran.err
    assert {p.name for p in Path("model-w4-gguf").iterdir()} == {"model-w4-Q4_0.gguf", "Modelfile", "r1quant.json"}
    assert "FROM ./model-w4-Q4_0.gguf" in Path("model-w4-gguf/Modelfile").read_text()
    record = json.loads(Path("model-w4-onnx/r1quant.json").read_text())
    assert record["exact"] and record["source"] == "../model" and record["quantization"]["recipe"]["bits"] == 4
    assert not [path for path in in_tmp.iterdir() if "partial" in path.name]


def test_one_gguf_file_where_one_is_named(run: Run, out: Path, in_tmp: Path) -> None:
    before = set(in_tmp.iterdir())
    ran = run("export", out, "--to", "gguf", "-o", "mine.gguf", "--json")
    assert ran.code == 0, ran.err
    assert {path.name for path in set(in_tmp.iterdir()) - before} == {"mine.gguf", "mine.Modelfile"}
    assert run("check", out, "mine.gguf", "--no-logits").code == 0


def test_what_cannot_be_exported(run: Run, out: Path, copied: Path, in_tmp: Path) -> None:
    before = {path.name for path in in_tmp.iterdir()}
    cases: dict[tuple[object, ...], tuple[int, str]] = {
        (out, "--to", "gptqq"): (2, "there is no format gptqq"),
        (out, "--to", ","): (2, "there is no format named"),
        (copied, "--to", "awq"): (2, "holds floats, and awq holds quantized weights"),
        (out, "--to", "awq", "-o", "."): (2, "exists already"),
        (out, "--to", "awq", "-o", "no/such/place"): (2, "does not exist"),
        (out, "--to", "compressed-tensors-int"): (2, "hold 8 bits, not 4"),
        (out, "--to", "gguf", "--type", "Q9_9"): (2, "'q9_9' is not known"),
        (out, "--to", "onnx", "--accuracy-level", "7"): (2, "accuracy-level 7 is not supported"),
        (out, "--to", "onnx", "--onnx-style", "neat"): (2, "onnx-style 'neat' is not supported"),
        (out, "--to", "onnx", "--dtype", "bfloat16"): (2, "not written in bfloat16"),
        (out, "--to", "onnx", "--head", "f16"): (2, "exact or as q8_0"),
        (out, "--to", "awq,gguf", "--accuracy-level", "4"): (2, "accuracy-level is an option of onnx, not of awq"),
        (out, "--to", "awq", "--type", "q4_0"): (2, "type is an option of gguf, not of awq"),
        (out, "--to", "onnx", "--samples", "8"): (2, "samples is an option of gguf, not of onnx"),
        (out, "--to", "awq", "--seq-len", "64"): (2, "seq-len is an option of gguf, not of awq"),
        (out, "--to", "awq", "--dtype", "float12"): (2, "dtype 'float12' is not supported"),
        (out, "--to", "gguf", "--type", "Q4_K_M", "--imatrix", "giuded"): (2, "no importance matrix 'giuded'"),
        (out, "--to", "awq", "--imatrix", "plain"): (2, "imatrix is an option of gguf, not of awq"),
        (out, "--to", "gguf", "--head", "q3"): (2, "head 'q3' is not supported"),
        ("nothing-here", "--to", "gguf"): (3, "there is no model 'nothing-here'"),
    }
    for words, (code, what) in cases.items():
        ran = run("export", *words)
        assert ran.code == code and what in ran.error[0], (words, ran.err)
    assert {path.name for path in in_tmp.iterdir()} == before
    hint = run("export", out, "--to", "gguf", "--type", "Q4_K_M", "--imatrix", "giuded").error[1]
    assert "guided, plain, none, or name a file" in hint


def test_every_option_says_which_formats_it_is_for() -> None:
    assert set(targets.ONLY_FOR) == {field.name for field in fields(targets.ExportOptions)}
    assert all(set(formats) <= set(FORMATS) for formats in targets.ONLY_FOR.values())


def test_nothing_is_left_of_an_export_that_fails(
    run: Run, out: Path, in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name for path in in_tmp.iterdir()}

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    for name in ("r1quant.formats.onnx.writer.write", "r1quant.jobs.export.safetensors.write_side_files"):
        monkeypatch.setattr(name, fail)
    for format in ("onnx", "awq"):
        ran = run("export", out, "--to", format)
        assert ran.code == 130 and f"r1quant export {out} --to {format}" in ran.err
    assert {path.name for path in in_tmp.iterdir()} == before


def test_what_a_killed_export_left_is_swept_away(run: Run, out: Path, in_tmp: Path) -> None:
    left = in_tmp / ".model-w4-awq.partial"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half of it")
    assert run("export", out, "--to", "awq").code == 0
    assert not left.exists() and run("check", out, "model-w4-awq").code == 0


def test_quantize_sends_export_formats_to_export(run: Run, copied: Path) -> None:
    ran = run("quantize", copied, "--format", "onnx")
    assert ran.code == 2 and "r1quant export OUT --to onnx" in ran.error[1]


def test_check_says_where_two_differ(run: Run, out: Path, copied: Path) -> None:
    assert run("quantize", copied, *RTN, "--min-max", "-o", "other").code == 0
    ran = run("check", out, "other", "--json")
    assert ran.code == 1 and not ran.json["identical"]
    first = ran.json["first_difference"]
    assert first["tensor"] == "model.layers.0.mlp.down_proj.weight" and first["largest"] > 0
    shown = run("check", out, "other")
    assert shown.code == 1 and "first difference" in shown.out and "NO" in shown.out


def test_check_runs_both_where_it_can(run: Run, out: Path, in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("export", out, "--to", "onnx", "-o", "onnx").code == 0
    ran = run("check", out, "onnx", "--json", "--tokens", "24")
    logits = ran.json["logits"]
    assert (logits["a"], logits["b"], logits["tokens"]) == ("torch", "onnxruntime", 24)
    assert logits["max_delta_log_probability"] < 1e-2 and abs(logits["mean_kl"]) < 1e-3
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as if it were not installed
    ran = run("check", out, "onnx", "--json")
    assert ran.code == 0 and "pip install" in ran.json["logits"]["reason"]
    ran = run("check", out, "onnx", "--logits")
    assert ran.code == 4 and "pip install" in ran.error[1]


def test_plan_says_which_runtimes_load_the_result(run: Run, llama: Path) -> None:
    symmetric = {v["runtime"]: v for v in run("plan", llama, *RTN, "--json").json["runtimes"]}
    assert symmetric["vLLM"]["loads"] == ["gptq", "awq", "compressed-tensors"]
    assert symmetric["llama.cpp"]["loads"] == ["gguf"] and not symmetric["llama.cpp"]["refuses"]
    free = {v["runtime"]: v for v in run("plan", llama, *RTN, "--asymmetric", "--json").json["runtimes"]}
    assert free["vLLM"]["refuses"] == {"gptq": "only symmetric grids are loaded"}
    eight = {v["runtime"]: v for v in run("plan", llama, *RTN, "--bits", "8", "--json").json["runtimes"]}
    assert "AWQ files hold 4 bits, not 8" in eight["SGLang"]["refuses"]["awq"]
    sixteen = run("plan", llama, "--method", "rtn", "--group-size", "16", "--json").json
    assert "multiple of 32" in sixteen["formats"]["gguf"] and sixteen["formats"]["onnx"] is None


def test_plan_for_several_devices(run: Run, in_tmp: Path) -> None:
    models.write_model(in_tmp / "m", "llama", hidden_size=128, intermediate_size=256, head_dim=32)
    base = ("plan", "m", "--method", "rtn", "--tp")
    assert run(*base, "2", "--group-size", "64").code == 0
    ran = run(*base, "4", "--group-size", "64", "--json")
    assert ran.code == 2 and "has 32 columns on each of 4 devices" in ran.json["problems"][0]["message"]
    assert "--group-size 32" in ran.json["problems"][0]["hint"]
    ran = run(*base, "3", "--json")
    assert ran.code == 2 and "4 heads cannot be split over 3 devices" in ran.json["problems"][0]["message"]


def test_yarn_is_explained(run: Run, in_tmp: Path) -> None:
    """The configuration of DeepSeek-R1-0528-Qwen3-8B, which runtimes read differently."""
    models.write_model(in_tmp / "r1", "qwen3")
    scaling = json.loads((in_tmp / "r1" / "config.json").read_text())["rope_scaling"]
    assert scaling["attn_factor"] == 0.8782488562869419 and "attention_factor" not in scaling
    found = run("inspect", "r1", "--json").json["yarn"]
    assert found["factor"] == pytest.approx(1.0) and found["disagree"]
    assert found["unstated"]["vLLM"] == found["unstated"]["llama.cpp"] == pytest.approx(0.1 * math.log(4) + 1)
    assert found["unstated"]["SGLang"] == pytest.approx(1.0)
    assert "runtimes disagree" in run("doctor", "r1").err
    assert run("quantize", "r1", *RTN, "-o", "out").code == 0
    written = json.loads((in_tmp / "out" / "config.json").read_text())["rope_scaling"]
    assert written.pop("attention_factor") == pytest.approx(1.0) and written == scaling
    assert not run("inspect", "out", "--json").json["yarn"]["unstated"]["vLLM"] > 1.0001
    assert run("export", "out", "--to", "gguf", "-o", "out.gguf").code == 0
    from gguf import GGUFReader

    field = GGUFReader(in_tmp / "out.gguf").fields["qwen3.rope.scaling.attn_factor"]
    assert field.contents() * (0.1 * math.log(4) + 1) == pytest.approx(1.0, rel=1e-6)
    shutil.rmtree(in_tmp / "out")

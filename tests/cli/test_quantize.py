"""quantize and verify as a user meets them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests import models
from tests.conftest import QUICK, Run


def test_quantize_then_verify_without_naming_anything(
    run: Run, llama: Path, in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(llama, in_tmp / "model")
    monkeypatch.setenv("R1QUANT_MODEL", "model")
    assert run("quantize", "--bits", "8", *QUICK).code == 0
    assert [p.name for p in in_tmp.iterdir() if p.name != "model"] == ["model-gptq-w8g32"]
    ran = run("verify", "--windows", "3", "--seq-len", "32", "--json", "--record", "record.json")
    assert ran.code == 0, ran.err
    assert Path(ran.json["out"]).name == "model-gptq-w8g32" and ran.json["model"] == "model"
    assert 0 < ran.json["kl"]["mean"] < 0.01 and ran.json["top1"] > 0.9
    assert json.loads(Path("record.json").read_text()) == ran.json
    shown = run("verify", "--windows", "3", "--seq-len", "32")
    assert shown.code == 0 and "KL divergence" in shown.out


def test_verify_without_a_checkpoint_in_the_folder(run: Run) -> None:
    ran = run("verify")
    assert ran.code == 3 and "r1quant quantize" in ran.error[1]


def test_the_baseline_has_to_be_there_and_the_same_model(run: Run, llama: Path, in_tmp: Path) -> None:
    models.write_model(in_tmp / "other", "llama", intermediate_size=128)
    shutil.copytree(llama, in_tmp / "model")
    assert run("quantize", "model", "--method", "rtn", "--group-size", "32", "-o", "out").code == 0
    ran = run("verify", "out", "--baseline", "other")
    assert ran.code == 3 and "intermediate_size is 128 in other and 96 in out" in ran.error[0]
    assert "is its own baseline" in run("verify", "out", "--baseline", "out").error[0]
    assert "does not say what it was made from" in run("verify", "model").error[0]
    (in_tmp / "model").rename(in_tmp / "moved")
    assert run("verify", "out").code == 3


def test_a_dry_run_is_the_plan(run: Run, llama: Path, in_tmp: Path) -> None:
    plan = run("plan", llama, "--json", *QUICK)
    dry = run("quantize", llama, "--json", "--dry-run", *QUICK)
    assert dry.code == plan.code == 0 and dry.json == plan.json
    assert run("quantize", llama, "--dry-run", *QUICK).out == run("plan", llama, *QUICK).out
    assert list(in_tmp.iterdir()) == []
    refused = run("quantize", llama, "--dry-run", "--json", "--group-size", "128")
    assert refused.code == 2 and "does not divide" in refused.json["problems"][0]["message"]


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ([], "model-gptq-w4g32"),
        (["--group-size", "-1", "--bits", "8"], "model-gptq-w8"),
        (["--asymmetric", "--bits", "2"], "model-gptq-w2g32-asym"),
    ],
)
def test_the_default_name_says_what_it_is(run: Run, copied: Path, in_tmp: Path, options: list[str], name: str) -> None:
    ran = run("quantize", copied, "--group-size", "32", "--method", "rtn", *options, "--json")
    assert Path(ran.json["out"]) == in_tmp / f"{name}-rtn"


@pytest.mark.parametrize("name", [".", "./", "../model", "../model/"])
def test_a_model_named_by_dots_has_a_name(run: Run, copied: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(copied)
    ran = run("quantize", name, "--group-size", "32", "--method", "rtn", "--json")
    assert ran.code == 0 and Path(ran.json["out"]).name == "model-gptq-w4g32-rtn"
    assert ran.json["record"]["model"] == "model" and ran.json["record"]["source"] == ".."


def test_the_output_is_a_checkpoint_again(run: Run, copied: Path) -> None:
    assert run("quantize", copied, "--group-size", "32", "--method", "rtn", "-o", "out").code == 0
    out, source = Path("out"), copied
    stated = json.loads((out / "quantize_config.json").read_text())
    config = json.loads((out / "config.json").read_text())
    assert config.pop("quantization_config") == stated
    assert config == json.loads((source / "config.json").read_text())
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (out / name).read_bytes() == (source / name).read_bytes()
    found = run("inspect", "out", "--json").json
    original = run("inspect", source, "--json").json
    for key in ("architecture", "parameters", "linears", "quantizable_parameters", "layers", "chat_template"):
        assert found[key] == original[key], key
    assert found["quantization"]["bits"] == 4 and original["quantization"] is None


def test_gates_decide_the_exit_code(run: Run, copied: Path, text_file: Path) -> None:
    assert run("quantize", copied, "--group-size", "32", "--method", "rtn", "-o", "out").code == 0
    words = ("verify", "out", "--text", text_file, "--windows", "3", "--seq-len", "32")
    kept = run(*words, "--gate", "kl.mean<5", "--gate", "top1>0.01", "--json")
    assert kept.code == 0 and [verdict["passed"] for verdict in kept.json["gates"]] == [True, True]
    low, high = kept.json["kl"]["mean_ci95"]
    assert low < kept.json["kl"]["mean"] < high
    assert [part["from"] for part in kept.json["kl"]["by_position"]] == [1, 9, 17, 25]
    broken = run(*words, "--gate", "kl.mean<0.000001")
    assert broken.code == 1 and "FAILED" in broken.out and "95 % interval" in broken.out
    assert run(*words, "--gate", "kl.meen<1").code == 2
    Path("r1quant.toml").write_text('gates = ["top1>2"]\n')
    assert run(*words).code == 1
    assert run(*words, "--gate", "kl.mean<5").code == 0, "what is asked for goes before the settings"
    Path("r1quant.toml").write_text("gates = 3\n")
    assert run(*words).code == 2


def test_one_window_has_no_interval(run: Run, copied: Path, text_file: Path) -> None:
    assert run("quantize", copied, "--group-size", "32", "--method", "rtn", "-o", "out").code == 0
    ran = run("verify", "out", "--text", text_file, "--windows", "1", "--seq-len", "32", "--json")
    assert ran.json["kl"]["mean_ci95"] is None and ran.json["perplexity"]["ratio_ci95"] is None
    assert run("verify", "out", "--text", text_file, "--windows", "1", "--seq-len", "32").code == 0

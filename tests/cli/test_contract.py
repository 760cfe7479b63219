"""What other programs rely on: one JSON object on stdout, exit codes, and errors of two lines."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from r1quant import errors
from r1quant.cli import main
from r1quant.jobs import inspect as inspect_job
from tests.conftest import QUICK, Run

KEYS = {
    "inspect": {"architecture", "parameters", "linears", "quantizable_parameters", "tied_embeddings", "tensors"},
    "plan": {"linears", "bits_per_weight", "output_bytes", "predicted_peak_rss_bytes", "problems", "warnings"},
    "quantize": {"out", "seconds", "peak_rss_bytes", "bits_per_weight", "linears"},
    "export": {"files", "source", "seconds", "peak_rss_bytes"},
    "check": {"identical", "tensors", "first_difference"},
    "verify": {"perplexity", "kl", "top1"},
    "bench": {"prefill_tokens_per_second", "decode_tokens_per_second", "ttft_seconds", "peak_memory_bytes", "rows"},
    "publish": {"files", "refused"},
    "pull-check": {"files", "failed"},
    "report": {"files", "verdict", "records", "differing", "note"},
    "fit": {"model", "context", "batch", "rows", "buy", "fitted", "notes"},
    "doctor": {"packages", "backends", "extras", "machine", "environment", "caches", "broken", "advice"},
}


def test_json_of_every_command(run: Run, llama: Path, text_file: Path) -> None:
    commands: dict[str, list[object]] = {
        "inspect": [llama],
        "plan": [llama, *QUICK],
        "quantize": [llama, "-o", "out", "--calib", text_file, *QUICK],
        "export": ["out", "--to", "awq,gguf"],
        "check": ["out", "out-awq"],
        "fit": [llama, "--gpu", "L4"],
        "doctor": [llama],
        "verify": ["out", "--text", text_file, "--windows", "2", "--seq-len", "32", "--record", "v.json"],
        "publish": ["out", "--to", "given", "--license", "mit"],
        "pull-check": ["given"],
        "report": ["out"],
    }
    found = {}
    for name, words in commands.items():
        ran = run(name, *words, "--json")
        assert ran.code == 0, ran.err
        found[name] = ran.json
        assert KEYS[name] <= set(found[name])
    assert found["inspect"]["architecture"] == "llama"
    assert found["inspect"]["quantizable_parameters"] == 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 96 * 64)
    assert found["inspect"]["parameters"] == found["inspect"]["quantizable_parameters"] + 2 * 512 * 64 + 5 * 64
    assert found["plan"]["bits_per_weight"] == found["quantize"]["bits_per_weight"]
    assert [x["name"] for x in found["plan"]["linears"]] == [x["name"] for x in found["quantize"]["linears"]]
    assert Path(found["quantize"]["out"]) == Path("out").absolute()
    assert [file["format"] for file in found["export"]["files"]] == ["awq", "gguf"]
    assert all({"path", "bytes", "exact"} <= set(file) and file["exact"] for file in found["export"]["files"])
    assert found["check"]["identical"] and found["check"]["first_difference"] is None
    assert {row["gpu"] for row in found["fit"]["rows"]} == {"A100 40GB", "L4"}
    assert {"baseline", "quantized"} <= set(found["verify"]["perplexity"])
    assert {"mean", "median", "p99"} <= set(found["verify"]["kl"])
    assert {Path(file["path"]).name for file in found["report"]["files"]} >= {"report.html", "report.md", "report.json"}


def test_stdout_and_stderr_without_json(run: Run, llama: Path) -> None:
    ran = run("plan", llama, *QUICK)
    assert ran.code == 0 and "self_attn.q_proj" in ran.out and "note: vLLM" not in ran.err
    ran = run("plan", llama, *QUICK, "--asymmetric")
    assert "note: vLLM" in ran.err and "note:" not in ran.out
    ran = run("quantize", llama, "--method", "rtn", "--group-size", "32", "-o", "out")
    assert ran.code == 0 and "r1quant verify out" in ran.out
    assert "14 linears" in ran.err and "layer 2/2" in ran.err


@pytest.mark.parametrize(
    ("words", "kind", "code"),
    [
        (["inspect", "absent"], "CheckpointError", 3),
        (["plan", "absent"], "CheckpointError", 3),
        (["quantize", "absent"], "CheckpointError", 3),
        (["verify", "absent"], "CheckpointError", 3),
        (["verify"], "CheckpointError", 3),
        (["quantize", "LLAMA", "--bits", "9"], "RecipeError", 2),
        (["quantize", "LLAMA", "--preset", "luck"], "RecipeError", 2),
        (["plan", "LLAMA", "--group-size", "half"], "RecipeError", 2),
        (["quantize", "LLAMA", "--bitz", "4"], "UsageError", 2),
        (["inspect", "LLAMA", "another"], "UsageError", 2),
        (["verify", "LLAMA", "--windows", "0"], "RecipeError", 2),
        (["quantise"], "UsageError", 2),
        ([], "UsageError", 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_errors(run: Run, llama: Path, words: list[str], kind: str, code: int) -> None:
    words = [str(llama) if word == "LLAMA" else word for word in words]
    ran = run(*words, "--json")
    assert ran.code == code
    assert set(ran.json) == {"error"} and set(ran.json["error"]) == {"kind", "message", "hint"}
    assert ran.json["error"]["kind"] == kind
    assert all(isinstance(v, str) and v and "\n" not in v for v in ran.json["error"].values())
    if words:
        plain = run(*words)
        assert plain.code == code and plain.out == ""
        assert plain.error == [ran.json["error"]["message"], ran.json["error"]["hint"]]


def test_no_command_is_answered_with_the_help(run: Run) -> None:
    ran = run()
    assert ran.code == 2 and "Usage: r1quant" in ran.out


def test_every_error_has_its_exit_code() -> None:
    codes = {kind.__name__: kind.exit_code for kind in errors.R1QuantError.__subclasses__()}
    assert codes == {
        "RecipeError": 2,
        "ResumeError": 2,
        "CheckpointError": 3,
        "RecordError": 3,
        "CalibrationError": 3,
        "NumericError": 3,
        "OutOfSpaceError": 3,
        "UploadError": 3,
        "PlatformError": 3,
        "MissingDependency": 4,
    }
    for name, code in codes.items():
        assert any(name in line and line.split()[2] == str(code) for line in (errors.__doc__ or "").splitlines())


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def job(model: str) -> None:
        raise error

    monkeypatch.setattr(inspect_job, "inspect", job)


@pytest.mark.parametrize("kind", errors.R1QuantError.__subclasses__())
def test_exit_codes(run: Run, monkeypatch: pytest.MonkeyPatch, kind: type[errors.R1QuantError]) -> None:
    raising(monkeypatch, kind("what is wrong", "what to do"))
    ran = run("inspect", "m")
    assert (ran.code, ran.out, ran.err) == (kind.exit_code, "", "error: what is wrong\nwhat to do\n")
    assert run("inspect", "m", "--json").json == {
        "error": {"kind": kind.__name__, "message": "what is wrong", "hint": "what to do"}
    }


def test_a_missing_package(run: Run, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "datasets" else find(name))
    ran = run("quantize", llama, *QUICK, "--calib", "hub:owner/name", "-o", "out")
    assert ran.code == 4 and ran.error[1] == "pip install 'r1quant[datasets]'"
    assert not Path("out").exists() and not Path("out.run").exists()


@pytest.mark.parametrize("command", ["verify", "bench"])
def test_a_record_that_cannot_be_written_is_refused_before_a_model_is_looked_for(
    run: Run, in_tmp: Path, command: str
) -> None:
    Path("folder").mkdir()
    for record, reason in (("none/r.json", "there is no folder none for the record"), ("folder", "folder is a folder")):
        ran = run(command, "no-such-model", "--record", record)
        assert (ran.code, ran.out, ran.error[0]) == (2, "", reason) and len(ran.error) == 2
        assert run(command, "no-such-model", "--record", record, "--json").json["error"]["kind"] == "RecipeError"
    assert run(command, "no-such-model", "--record", "r.json").code == 3
    assert [path.name for path in Path().iterdir()] == ["folder"]


def test_the_unexpected_has_no_traceback_without_debug(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    raising(monkeypatch, ZeroDivisionError("a\nb"))
    ran = run("inspect", "m")
    assert ran.code == 3 and ran.error == ["unexpected: a b", "run again with --debug and report the traceback"]
    assert run("inspect", "m", "--json").json["error"]["kind"] == "ZeroDivisionError"
    debug = run("inspect", "m", "--debug", "--json")
    assert (
        "Traceback" in debug.err and "raise error" in debug.err and debug.json["error"]["message"] == "unexpected: a b"
    )
    raising(monkeypatch, RecursionError())
    assert run("inspect", "m").error[0] == "unexpected: RecursionError"


def test_debug_shows_where_an_expected_error_came_from(run: Run) -> None:
    assert "open_model" in run("inspect", "absent", "--debug").err


def test_an_error_of_the_file_system_names_the_path(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    raising(monkeypatch, PermissionError(13, "Permission denied", "/secret/model.safetensors"))
    ran = run("inspect", "m")
    assert ran.code == 3 and ran.error[0] == "Permission denied: /secret/model.safetensors"


@pytest.mark.parametrize(("words", "kept"), [(["inspect", "a b"], False), (["quantize", "m", "--bits", "4"], True)])
def test_interrupted(run: Run, monkeypatch: pytest.MonkeyPatch, words: list[str], kept: bool) -> None:
    raising(monkeypatch, KeyboardInterrupt())
    monkeypatch.setattr("r1quant.jobs.quantize.run.make_plan", lambda *_: inspect_job.inspect("m"))
    ran = run(*words)
    again = {"inspect": "r1quant inspect 'a b'", "quantize": "r1quant quantize m --bits 4"}[words[0]]
    assert ran.code == 130 and ran.out == "" and ran.err.splitlines()[-1] == again
    assert ("finished layers are kept" in ran.err) is kept


def test_main_exits_with_the_code(
    in_tmp: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["r1quant", "inspect", "absent", "--json"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 3 and json.loads(capsys.readouterr().out)["error"]["kind"] == "CheckpointError"


def test_a_reader_that_goes_away_is_no_error(in_tmp: Path, llama: Path) -> None:
    """As `r1quant plan | head` does: nothing is said about it."""
    reader, writer = os.pipe()
    os.close(reader)
    code = f"from r1quant.cli import main; main(['plan', {str(llama)!r}, '--group-size', '32'])"
    ran = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert ran.returncode == 1 and ran.stderr == ""

"""After quantize and export come the commands that measure and serve what was written, in each format."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

import r1quant
from r1quant.jobs.serving import next_steps
from tests import models
from tests.conftest import Run

SERVERS = {"vLLM", "SGLang"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.write_model(tmp_path_factory.mktemp("serving") / "model", "llama")


def steps(run: Run, *words: object) -> dict[str, Any]:
    """What a command proposes, by what it is for."""
    ran = run(*words, "--json")
    assert ran.code == 0, ran.err
    return {step["for"]: step for step in ran.json["next"]}


@pytest.mark.parametrize(
    ("options", "runtimes"),
    [
        ((), {*SERVERS, "transformers"}),
        (("--asymmetric",), {"transformers"}),
        (("--bits", "3"), {"transformers"}),
        (("--group-size", "16"), {"transformers"}),
        (("--format", "gptq-v2"), {"transformers"}),
        (("--format", "awq", "--asymmetric"), {*SERVERS, "transformers"}),
        (("--format", "compressed-tensors"), {*SERVERS, "transformers"}),
        (("--format", "compressed-tensors", "--bits", "8", "--asymmetric"), {"transformers"}),
        (("--format", "compressed-tensors-int", "--bits", "8"), set()),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_only_what_loads_the_format_and_grid_is_proposed(
    run: Run, model: Path, options: tuple[str, ...], runtimes: set[str]
) -> None:
    """As the plan says before it begins."""
    words = (model, "--method", "rtn", "--group-size", "32", *options)
    found = steps(run, "quantize", *words, "-o", "out")
    plan = run("plan", *words, "-o", "other", "--json").json
    loads = {verdict["runtime"] for verdict in plan["runtimes"] if plan["recipe"]["format"] in verdict["loads"]}
    assert {*found} - {"verify"} == runtimes == loads
    assert found["verify"]["commands"] == ["r1quant verify out"]
    if "vLLM" in runtimes:
        assert found["vLLM"]["commands"][0] == "vllm serve out --served-model-name out --max-model-len 2048"
        assert found["SGLang"]["commands"][0].startswith("python -m sglang.launch_server --model-path out ")
    if "transformers" in runtimes:
        package = "compressed-tensors" if "compressed-tensors" in options else "gptqmodel"
        assert found["transformers"]["commands"] == [f"pip install transformers accelerate {package}"]
        compile(found["transformers"]["python"], "transformers", "exec")
        assert 'path = "out"' in found["transformers"]["python"]


def test_exports_are_served_by_what_loads_them(run: Run, model: Path, in_tmp: Path) -> None:
    assert run("quantize", model, "--method", "rtn", "--group-size", "32", "-o", "out").code == 0
    found = steps(run, "export", "out", "--to", "gguf", "-o", "gguf")
    (file,) = Path("gguf").glob("*.gguf")
    assert {*found} == {"verify", "llama.cpp", "Ollama"}
    assert [line.split()[:3] for line in found["llama.cpp"]["commands"]] == [
        ["llama-cli", "-m", file.as_posix()],
        ["llama-server", "-m", file.as_posix()],
    ]
    assert found["Ollama"]["commands"][0].startswith("cd gguf && ollama create ")
    assert all(Path(shlex.split(line)[2]).is_file() for line in found["llama.cpp"]["commands"])
    found = steps(run, "export", "out", "--to", "gguf", "-o", "alone.gguf")
    assert found["Ollama"]["commands"][0] == "cd . && ollama create alone -f alone.Modelfile"
    found = steps(run, "export", "out", "--to", "onnx", "-o", "onnx")
    assert {*found} == {"verify", "onnxruntime", "onnxruntime-genai"}
    for name in ("onnxruntime", "onnxruntime-genai"):
        compile(found[name]["python"], name, "exec")
    found = steps(run, "export", "out", "--to", "safetensors", "-o", "floats")
    assert {*found} == {"quantize"} and found["quantize"]["commands"] == ["r1quant quantize floats"]
    ran = run("export", "out", "--to", "awq,compressed-tensors")
    assert ran.code == 0 and ran.out.count("vllm serve out-") == 2 and "r1quant verify out-awq" in ran.out


def test_they_are_printed_for_people(run: Run, model: Path) -> None:
    ran = run("quantize", model, "--method", "rtn", "--group-size", "32", "-o", "a b")
    lines = ran.out.splitlines()
    assert "  r1quant verify 'a b'" in lines and "next, vLLM:" in lines
    assert any(line.startswith("  vllm serve 'a b' --served-model-name 'a b'") for line in lines)
    assert "also loaded by transformers; --json has the code" in lines and "AutoTokenizer" not in ran.out
    ran = run("quantize", model, "--method", "rtn", "--group-size", "32", "--asymmetric", "-o", "asym")
    assert "vllm" not in ran.out and "sglang" not in ran.out
    assert "next, transformers:" in ran.out and '  path = "asym"' in ran.out.splitlines()


def test_the_first_command_works_as_it_stands(run: Run, model: Path, text_file: Path) -> None:
    command = steps(run, "quantize", model, "--method", "rtn", "--group-size", "32", "-o", "o")["verify"]["commands"][0]
    program, *words = shlex.split(command)
    assert program == "r1quant"
    assert run(*words, "--text", text_file, "--windows", "2", "--seq-len", "32").code == 0


def test_a_model_without_a_tokenizer_is_served_too(model: Path, in_tmp: Path) -> None:
    bare = models.write_model(in_tmp / "bare", "llama")
    for path in bare.glob("tokenizer*"):
        path.unlink()
    done = r1quant.quantize(bare, "out", method="rtn", group_size=32)
    assert [step.runtime for step in next_steps(done.out)] == ["verify", "vLLM", "SGLang", "transformers"]


def test_a_foreign_checkpoint_is_verified_against_a_model_that_has_to_be_named(model: Path, in_tmp: Path) -> None:
    r1quant.quantize(model, "out", method="rtn", group_size=32)
    Path("out/r1quant.json").unlink()
    assert next_steps(Path("out"))[0].blocks[0].lines == ("r1quant verify out --baseline FLOAT_MODEL",)

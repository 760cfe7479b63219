"""Shells complete commands, options and values, and nothing slow is loaded for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.test_help import HEAVY
from tests.conftest import Run


def completed(folder: Path, *words: str) -> tuple[list[str], set[str]]:
    """What bash would be offered for the last word, and the packages that were loaded for it."""
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
        "from r1quant.cli import main; main([])"
    )
    asked = {
        "_R1QUANT_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(("r1quant", *words)),
        "COMP_CWORD": str(len(words)),
    }
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, **asked},
    )
    assert ran.returncode == 0, ran.stderr
    loaded = {name.partition(".")[0] for name in ran.stderr.split()}
    return [line.partition(",")[2] for line in ran.stdout.splitlines()], loaded


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("qua",), ["quantize"]),
        (("quantize", "--preset", "ba"), ["balanced"]),
        (("quantize", "--format", "compressed"), ["compressed-tensors", "compressed-tensors-int"]),
        (("quantize", "--method", "g"), ["gptq"]),
        (("plan", "--allowed-bits", "4,1"), ["4,16"]),
        (("verify", "--backend", "onnx"), ["onnxruntime"]),
        (("verify", "--aime", "mi"), ["mini"]),
        (("fit", "--gpu", "H200"), ["H200"]),
        (("quantize", "mod"), ["model-a", "model.gguf"]),
        (("quantize", "inner/"), ["inner/model-b"]),
        (("completion", "z"), ["zsh"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_is_offered(tmp_path: Path, words: tuple[str, ...], offered: list[str]) -> None:
    for place in (tmp_path / "model-a", tmp_path / "inner" / "model-b"):
        place.mkdir(parents=True)
        (place / "config.json").write_text("{}")
    (tmp_path / "model-empty").mkdir()
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    found, loaded = completed(tmp_path, *words)
    assert found == offered and not loaded & set(HEAVY)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_names_the_program_and_is_understood_by_the_shell(run: Run, in_tmp: Path, shell: str) -> None:
    ran = run("completion", shell)
    assert ran.code == 0 and ran.err == "" and f"_R1QUANT_COMPLETE={shell}_complete" in ran.out
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    Path("script").write_text(ran.out)
    checked = subprocess.run([shell, "-n", "script"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0 and checked.stderr == "", checked.stderr


def test_bash_completes_after_the_script_is_read(run: Run, in_tmp: Path) -> None:
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    Path("script").write_text(run("completion", "bash").out)
    command = Path("r1quant")
    command.write_text(f"#!/bin/sh\nexec {sys.executable} -c 'from r1quant.cli import main; main()' \"$@\"\n")
    command.chmod(0o755)
    words = "source script; COMP_WORDS=(r1quant quantize --preset f); COMP_CWORD=3; "
    words += "_r1quant_completion ./r1quant; echo ${COMPREPLY[@]}; complete -p r1quant"
    ran = subprocess.run(
        ["bash", "-c", words], capture_output=True, text=True, check=False,
        env={**os.environ, "PATH": f"{in_tmp}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert ran.stdout.splitlines()[0] == "fast", ran.stderr
    assert "_r1quant_completion r1quant" in ran.stdout


def test_a_shell_that_is_not_known(run: Run) -> None:
    ran = run("completion", "csh")
    assert ran.code == 2 and "'csh'" in ran.error[0] and len(ran.error) == 2

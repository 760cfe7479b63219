"""Every file of examples/ runs on the embedded model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import r1quant
from tests.docs.readme import ROOT

EXAMPLES = sorted(path.name for path in (ROOT / "examples").iterdir())
ARGUMENTS = {
    "quantize_and_gate.py": ("tiny-r1", "out"),
    "compare_presets.py": ("tiny-r1", "presets"),
    "into_every_format.sh": ("quantized", "formats"),
}
PRINTED = {
    "quantize_and_gate.py": "kl.mean<0.5",
    "compare_presets.py": "balanced",
    "into_every_format.sh": "identical",
}


def test_every_example_is_run() -> None:
    assert set(EXAMPLES) == set(ARGUMENTS) == set(PRINTED)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name: str, in_tmp: Path) -> None:
    if name.endswith(".sh"):
        r1quant.quantize("tiny-r1", "quantized", method="rtn", group_size=64)
    program = sys.executable if name.endswith(".py") else "sh"
    scripts = in_tmp / "bin"
    scripts.mkdir()
    command = scripts / "r1quant"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m r1quant "$@"\n', "utf-8")
    command.chmod(0o755)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    ran = subprocess.run(
        [program, str(ROOT / "examples" / name), *ARGUMENTS[name]],
        cwd=in_tmp, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert PRINTED[name] in ran.stdout + ran.stderr

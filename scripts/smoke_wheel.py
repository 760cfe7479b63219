"""Runs the commands of an installed r1quant in an empty folder, as its users would: quantize, verify, export, fit.

    python scripts/smoke_wheel.py PATH/TO/r1quant

It imports nothing of the checkout. Exit code 1 and the command's own words if one of them fails.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TEXT = ("--samples", "8", "--seq-len", "256")


def main(program: Path) -> int:
    with tempfile.TemporaryDirectory() as folder:
        quantized = run(program, folder, "quantize", "--bits", "4", *TEXT)
        out = Path(str(quantized["out"]))
        assert out.is_dir() and quantized["linears"], quantized
        verified = run(program, folder, "verify", out.name, "--windows", "2", "--gate", "kl.mean<0.5")
        assert verified["kl"]["mean"] > 0, verified
        exported = run(program, folder, "export", out.name, "--to", "gguf,onnx,compressed-tensors")
        assert all(file["exact"] for file in exported["files"]), exported
        assert run(program, folder, "check", out.name, exported["files"][0]["path"])["identical"]
        assert run(program, folder, "fit", out.name, "--gpu", "RTX 4060")["rows"]
        version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    print(f"{version}: quantize, verify, export, check and fit work from the wheel alone")
    return 0


def run(program: Path, folder: str, *arguments: str) -> dict[str, Any]:
    """What a command prints with --json. Raises SystemExit with its stderr if it fails."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"R1QUANT_CACHE": f"{folder}/cache", "HF_HUB_OFFLINE": "1"}
    command = [str(program.absolute()), *arguments, "--json"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"r1quant {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}")
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))

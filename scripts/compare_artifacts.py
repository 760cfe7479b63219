"""Whether two commits of r1quant write the same files: every artifact of tiny-r1 is made by both and compared by hash.

    python scripts/compare_artifacts.py REV [REV]        the second is the working tree if left out

Records (r1quant.json) are left out: they may gain fields. Exit code 1 if a file differs, is missing or is new.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECORD = "r1quant.json"
TEXT = ("--samples", "8", "--seq-len", "256")
QUANTIZATIONS = {
    "rtn-4": ("--method", "rtn"),
    "rtn-3-asymmetric": ("--method", "rtn", "--bits", "3", "--asymmetric", "--group-size", "32", "--format", "gptq-v2"),
    "rtn-8-int": ("--method", "rtn", "--bits", "8", "--format", "compressed-tensors-int"),
    "gptq-4": ("--method", "gptq", *TEXT),
    "gptq-4-rotated": ("--method", "gptq", "--rotate", "both", "--group-size", "-1", *TEXT),
    "gptq-2-asymmetric": ("--method", "gptq", "--bits", "2", "--asymmetric", "--format", "compressed-tensors", *TEXT),
    "awq-4": ("--method", "awq", "--format", "awq", "--asymmetric", *TEXT),
    "fast-4": ("--preset", "fast", *TEXT),
    "balanced-4": ("--preset", "balanced", *TEXT),
    "balanced-budget": ("--preset", "balanced", "--target-bpw", "4.25", "--format", "compressed-tensors", *TEXT),
    "smooth-4": ("--method", "gptq", "--smooth", "0.5", "--group-size", "64", *TEXT),
}
EXPORTS = {
    "gptq-4": ("gptq-v2", "awq", "compressed-tensors", "onnx", "gguf", "safetensors"),
    "rtn-3-asymmetric": ("compressed-tensors", "onnx"),
    "awq-4": ("gptq", "compressed-tensors", "onnx", "gguf"),
    "rtn-8-int": ("onnx", "gguf"),
}
COMMAND = (sys.executable, "-c", "from r1quant.cli import main; raise SystemExit(main())")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rev", help="the commit to compare with")
    parser.add_argument("other", nargs="?", help="a second commit, instead of the working tree")
    parser.add_argument("--record", type=Path, help="write the hashes of both to this file")
    options = parser.parse_args()
    hashes = []
    for rev in (options.rev, options.other):
        with source_tree(rev) as tree, tempfile.TemporaryDirectory() as folder:
            hashes.append(artifacts(tree, Path(folder)))
    before, after = hashes
    if options.record:
        options.record.write_text(json.dumps({"before": before, "after": after}, indent=1) + "\n", "utf-8")
    different = [name for name in sorted(before | after) if before.get(name) != after.get(name)]
    for name in different:
        print(f"differs: {name}")
    print(f"{len(before.keys() & after.keys()) - len(different)} of {len(before | after)} files are identical")
    return 1 if different else 0


@contextmanager
def source_tree(rev: str | None) -> Iterator[Path]:
    """A checkout of the commit, deleted afterwards; the working tree for None."""
    if rev is None:
        yield ROOT
        return
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "tree"
        subprocess.run(["git", "worktree", "add", "--detach", folder, rev], cwd=ROOT, check=True, capture_output=True)
        try:
            yield folder
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", folder], cwd=ROOT, check=True)


def artifacts(tree: Path, folder: Path) -> dict[str, str]:
    """The sha256 of every file that the r1quant of the tree writes, by artifact and name."""
    hashes: dict[str, str] = {}
    for name, flags in QUANTIZATIONS.items():
        run(tree, folder, "quantize", "-o", name, *flags)
        hashes |= hashed(folder, name)
        for format in EXPORTS.get(name, ()):
            run(tree, folder, "export", name, "--to", format, "-o", f"{name}-to-{format}")
            hashes |= hashed(folder, f"{name}-to-{format}")
    for type in ("bf16", "Q8_0"):
        run(tree, folder, "export", "tiny-r1", "--to", "gguf", "--type", type, "-o", f"float-to-{type}")
        hashes |= hashed(folder, f"float-to-{type}")
    return hashes


def run(tree: Path, folder: Path, *arguments: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(tree), "R1QUANT_CACHE": str(folder / "cache")}
    done = subprocess.run([*COMMAND, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"r1quant {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}")


def hashed(folder: Path, name: str) -> dict[str, str]:
    files = sorted(path for path in (folder / name).rglob("*") if path.is_file() and path.name != RECORD)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


if __name__ == "__main__":
    raise SystemExit(main())

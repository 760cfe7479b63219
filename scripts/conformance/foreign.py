"""The half of a conformance test that runs in the other program's environment.

A reader script says how that program loads a checkpoint, and what can be asked of it there; a maker script how it
writes one. This module does the rest: it takes the jobs, scores the tokens, and leaves for each job `result.json`
(kernel, hash of every dequantized weight, generated tokens) and `logprobs.npy`. It needs numpy, and torch only where it
is called with tensors.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
RESULT, LOG_PROBABILITIES = "result.json", "logprobs.npy"


@dataclass(frozen=True, eq=False)
class Loaded:
    """A checkpoint in the other program's hands. None for what it cannot be asked.

    kernel    what multiplies
    weights   the dequantized weight [out, in] of every quantized linear, float32, by its name
    logits    tokens int64 [n] -> [n, vocabulary], float32
    generate  tokens int64 [n], count -> the next `count` tokens, greedily; fewer only after the end of the text
    note      why something above is None
    """

    kernel: str
    weights: Iterable[tuple[str, Array]] | None = None
    logits: Callable[[Array], Array] | None = None
    generate: Callable[[Array, int], list[int]] | None = None
    note: str = ""


def run(load: Callable[[Path], Loaded], packages: Iterable[str]) -> None:
    """Does the jobs of the file that the last argument names.

    [{"checkpoint", "tokens", "out", "prompts": [[token, ...], ...], "new_tokens"}, ...]. A job that fails leaves its
    traceback in its result, and the next one is begun.
    """
    versions = {name: metadata.version(name) for name in packages}
    for job in json.loads(Path(sys.argv[-1]).read_text("utf-8")):
        out = Path(job["out"])
        try:
            result = _one(load(Path(job["checkpoint"])), job, out)
        except Exception:
            result = {"error": traceback.format_exc()}
        (out / RESULT).write_text(json.dumps({"versions": versions, **result}), "utf-8")
        gc.collect()


def make_all(make: Callable[[dict[str, Any], Path, dict[str, Any]], None]) -> None:
    """Writes the folders of the request that the last argument names, by make(request, folder, its options).

    {"model": folder, "made": {folder: options, ...}, ...}. Where one cannot be made, its folder has the traceback as
    error.txt, and the next one is begun.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"  # before make imports what reads it
    request = json.loads(Path(sys.argv[-1]).read_text("utf-8"))
    for name, options in request["made"].items():
        out = Path(name)
        try:
            make(request, out, options)
        except Exception:
            out.mkdir(exist_ok=True)
            (out / "error.txt").write_text(traceback.format_exc(), "utf-8")


def _one(loaded: Loaded, job: dict[str, Any], out: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"kernel": loaded.kernel}
    if loaded.note:
        found["note"] = loaded.note
    if loaded.weights is not None:
        found["weights"] = {name: digest(weight) for name, weight in loaded.weights}
    if loaded.logits is not None:
        np.save(out / LOG_PROBABILITIES, log_softmax(loaded.logits(np.load(job["tokens"]))))
    if loaded.generate is not None and job["prompts"]:
        prompts = [np.asarray(prompt, np.int64) for prompt in job["prompts"]]
        found["generated"] = [[int(t) for t in loaded.generate(prompt, job["new_tokens"])] for prompt in prompts]
    return found


def digest(weight: Array) -> str:
    """sha256 over shape and float32 values; the two zeros are one number."""
    values = np.ascontiguousarray(weight, "<f4") + np.float32(0)
    return hashlib.sha256(str(values.shape).encode() + values.tobytes()).hexdigest()


def log_softmax(logits: Array) -> npt.NDArray[np.float32]:
    """Over the last axis, computed in float64 and given in float32."""
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(-1, keepdims=True))
    return wide.astype(np.float32)

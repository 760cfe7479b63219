"""The half of a conformance test that runs in the other program's environment.

A reader script says how that program loads a folder. This module does the rest: it takes the jobs, scores the tokens,
and leaves for each job `result.json` (kernel, hash of every dequantized weight) and `logprobs.npy`.
It needs numpy, and torch only where it is called with tensors.
"""

from __future__ import annotations

import gc
import hashlib
import json
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
    """A checkpoint in the other program's hands.

    kernel   what multiplies
    weights  the dequantized weight [out, in] of every quantized linear, float32, by its name
    logits   tokens int64 [n] -> [n, vocabulary], float32
    """

    kernel: str
    weights: Iterable[tuple[str, Array]]
    logits: Callable[[Array], Array]


def run(load: Callable[[Path], Loaded], packages: Iterable[str]) -> None:
    """Does the jobs of the file that the last argument names: [{"checkpoint", "tokens", "out"}, ...].

    A job that fails leaves its traceback in its result, and the next one is begun.
    """
    versions = {name: metadata.version(name) for name in packages}
    for job in json.loads(Path(sys.argv[-1]).read_text("utf-8")):
        out = Path(job["out"])
        try:
            result = _one(load(Path(job["checkpoint"])), np.load(job["tokens"]), out)
        except Exception:
            result = {"error": traceback.format_exc()}
        (out / RESULT).write_text(json.dumps({"versions": versions, **result}), "utf-8")
        gc.collect()


def _one(loaded: Loaded, tokens: Array, out: Path) -> dict[str, Any]:
    weights = {name: digest(weight) for name, weight in loaded.weights}
    np.save(out / LOG_PROBABILITIES, log_softmax(loaded.logits(tokens)))
    return {"kernel": loaded.kernel, "weights": weights}


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

"""Runs two artifacts, each in its own runtime, on the same tokens: how far apart are their log-probabilities?"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from r1quant.checkpoint.artifact import Artifact
from r1quant.checkpoint.tokenizer import Tokenizer
from r1quant.data import windows
from r1quant.errors import CalibrationError, CheckpointError, MissingDependency
from r1quant.jobs.runtimes import open_runtime
from r1quant.jobs.setup import Setup
from r1quant.progress import Progress

UNASKED_LIMIT = 2 * 10**9  # bytes of float32 weights up to which models are run without being asked to


def agree(a: Artifact, b: Artifact, count: int, wanted: bool | None, progress: Progress) -> dict[str, Any]:
    """The distance of two runtimes on `count` tokens of the bundled text, or the reason why there is none.

    wanted  True runs them whatever it takes, None only where that is cheap and possible, False never
    """
    if wanted is False:
        return {"reason": "not asked for"}
    size = max(sum(spec.nbytes for spec in artifact.tensors.values()) for artifact in (a, b))
    if wanted is None and size > UNASKED_LIMIT:
        return {"reason": "the model is large; ask for it with --logits"}
    if wanted is None and {a.format, b.format}.isdisjoint(("onnx", "gguf")):
        return {"reason": "both are run by torch, from the weights that were compared"}
    try:
        tokens = _tokens(a if "tokenizer.json" in a.side_files else b, count)
        progress.begin("running both", 2)
        scores = []
        for artifact in (a, b):
            runtime = open_runtime(artifact, count, Setup(device="cpu", dtype="float32"))
            scores.append((runtime.name, log_softmax(runtime.logits(tokens))))
            progress.advance(1)
    except (MissingDependency, CalibrationError, CheckpointError) as error:
        if wanted:
            raise
        return {"reason": f"{error.message}; {error.hint}"}
    (one, p), (other, q) = scores
    return {
        "a": one,
        "b": other,
        "tokens": len(tokens),
        "max_delta_log_probability": float(np.abs(p - q).max()),
        "mean_kl": float((np.exp(p) * (p - q)).sum(-1).mean()),
        "same_top1": float((p.argmax(-1) == q.argmax(-1)).mean()),
    }


def _tokens(artifact: Artifact, count: int) -> npt.NDArray[np.int64]:
    vocabulary = int(artifact.config["vocab_size"])
    tokenizer = Tokenizer.from_files(artifact.side_files, artifact.source)
    text = windows.evaluation_text(None, tokenizer, 1, count, vocabulary=vocabulary)
    first: npt.NDArray[np.int64] = text.tokens[0]
    return first


def log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Over the last axis, in float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(-1, keepdims=True))
    return wide

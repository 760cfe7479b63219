"""Runs two artifacts, each in its own runtime, on the same tokens: how far apart are their log-probabilities?"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from r1quant.checkpoint.artifact import Artifact
from r1quant.checkpoint.tokenizer import Tokenizer
from r1quant.core.json import JsonObject
from r1quant.data import windows
from r1quant.errors import CalibrationError, CheckpointError, MissingDependency
from r1quant.jobs.runtimes import open_runtime
from r1quant.jobs.setup import Setup
from r1quant.progress import Progress

UNASKED_LIMIT = 2 * 10**9  # bytes of float32 weights up to which models are run without being asked to


@dataclass(frozen=True)
class LogitDistance:
    """How far apart the log-probabilities of two runtimes are on the same tokens.

    a, b                        the names of the runtimes
    max_delta_log_probability   the largest difference of a log-probability, in nats
    mean_kl                     the mean KL divergence of b from a, in nats per token
    same_top1                   the share of tokens of which both find the same one likeliest
    """

    a: str
    b: str
    tokens: int
    max_delta_log_probability: float
    mean_kl: float
    same_top1: float

    def as_dict(self) -> JsonObject:
        return asdict(self)


@dataclass(frozen=True)
class NotCompared:
    """Why two runtimes were not run."""

    reason: str

    def as_dict(self) -> JsonObject:
        return asdict(self)


def compare_logits(
    a: Artifact, b: Artifact, count: int, requested: bool | None, progress: Progress
) -> LogitDistance | NotCompared:
    """The distance of two runtimes on `count` tokens of the bundled text, or the reason why there is none.

    requested  True runs them whatever it takes, None only if that is cheap and possible, False never

    Raises MissingDependency, CalibrationError or CheckpointError if a requested comparison cannot be made.
    """
    if requested is False:
        return NotCompared("not asked for")
    size = max(sum(spec.nbytes for spec in artifact.tensors.values()) for artifact in (a, b))
    if requested is None and size > UNASKED_LIMIT:
        return NotCompared("the model is large; ask for it with --logits")
    if requested is None and {a.format, b.format}.isdisjoint(("onnx", "gguf")):
        return NotCompared("both are run by torch, from the weights that were compared")
    try:
        tokens = _tokens(a if "tokenizer.json" in a.side_files else b, count)
        progress.begin("running both", 2)
        scores = []
        for artifact in (a, b):
            runtime = open_runtime(artifact, count, Setup(device="cpu", dtype="float32"))
            scores.append((runtime.name, log_softmax(runtime.logits(tokens))))
            progress.advance(1)
    except (MissingDependency, CalibrationError, CheckpointError) as error:
        if requested:
            raise
        return NotCompared(f"{error.message}; {error.hint}")
    (one, p), (other, q) = scores
    return LogitDistance(
        one,
        other,
        len(tokens),
        max_delta_log_probability=float(np.abs(p - q).max()),
        mean_kl=float((np.exp(p) * (p - q)).sum(-1).mean()),
        same_top1=float((p.argmax(-1) == q.argmax(-1)).mean()),
    )


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

"""Holds a reader's answer against r1quant's own reading of the same weights. It knows neither readers nor formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from conformance.foreign import digest, log_softmax
from conformance.readers import Answer, Limit, Shortfall
from r1quant.arch.tables import architecture_of
from r1quant.backends.torch import TorchModel
from r1quant.checkpoint.artifact import Artifact
from r1quant.checkpoint.tokenizer import Tokenizer
from r1quant.data import windows
from r1quant.tinyr1.problems import INSTRUCTION

NEW_TOKENS = 32


@dataclass(frozen=True, eq=False)
class Expected:
    """What a model's weights come to, as r1quant reads and runs them.

    tokens             an .npy file, int64 [n]
    weights            the hash of every dequantized weight, by the name of its linear
    log_probabilities  float32 [n, vocabulary]
    prompts            token ids; empty where generation is not compared
    generated          the NEW_TOKENS tokens that follow each prompt, greedily
    """

    tokens: Path
    weights: Mapping[str, str]
    log_probabilities: np.ndarray
    prompts: Sequence[Sequence[int]]
    generated: Sequence[Sequence[int]]


def expect(artifact: Artifact, work: Path, name: str, count: int, questions: Sequence[str]) -> Expected:
    """Reads and runs an artifact in float32. questions: of which the model's answers are compared."""
    tokenizer = Tokenizer.from_files(artifact.side_files, artifact.source)
    text = windows.evaluation_text(None, tokenizer, 1, count, vocabulary=artifact.config["vocab_size"])
    path = work / f"{name}.npy"
    np.save(path, text.tokens[0])
    model = TorchModel(artifact, architecture_of(artifact.config))
    turns = [[{"role": "user", "content": f"{question}\n{INSTRUCTION}"}] for question in questions]
    prompts = [tokenizer.encode(tokenizer.render(turn, add_generation_prompt=True)) for turn in turns]
    return Expected(
        path,
        {linear: digest(artifact.qlinear(linear).dequantize()) for linear in artifact.linear_specs},
        log_softmax(model.logits(text.tokens[0])),
        prompts,
        [model.generate(np.array(prompt), NEW_TOKENS) for prompt in prompts],
    )


def compare(
    mine: Expected, answer: Answer, limit: Limit, refusal: str, shortfall: Shortfall | None = None
) -> dict[str, Any]:
    """What the verdict rests on, and `passed`. A known refusal is as it should be; anything else would be news.

    Where nothing is wrong but that the limit is missed by no more than is known, `passed` is false and `short` says so.
    """
    result = answer.result
    if "error" in result:
        if refusal and refusal in result["error"]:
            return {"passed": True, **result, "error": result["error"].strip().splitlines()[-1]}
        return {"passed": False, **result}
    row: dict[str, Any] = {k: v for k, v in result.items() if k not in ("weights", "generated")}
    passed = [not refusal]
    if "weights" in result:
        theirs = result["weights"]
        differing = [n for n in sorted(mine.weights.keys() | theirs) if mine.weights.get(n) != theirs.get(n)]
        row |= {"linears": len(mine.weights), "differing_linears": differing}
        passed.append(not differing)
    if answer.log_probabilities.is_file():
        p, q = mine.log_probabilities, np.load(answer.log_probabilities)
        if p.shape != q.shape:
            return row | {"passed": False, "error": f"log-probabilities of shape {q.shape} instead of {p.shape}"}
        row |= distance(p, q)
        row["limit"] = {"what": limit.what, "nats": limit.nats, "because": limit.because}
    if "generated" in result:
        same = [ours == theirs for ours, theirs in zip(mine.generated, result["generated"], strict=True)]
        row |= {"prompts": len(same), "same_generation": sum(same)}
        passed.append(all(same))
    if "limit" not in row:
        return row | {"passed": all(passed) and len(passed) > 1}
    return row | (against_limit(row, limit, shortfall) if all(passed) else {"passed": False})


def against_limit(row: Mapping[str, Any], limit: Limit, shortfall: Shortfall | None) -> dict[str, Any]:
    """`passed`, and `short` where the limit is missed as it is known to be."""
    found = row[limit.what]
    if found < limit.nats or shortfall is None or found >= shortfall.ceiling:
        return {"passed": found < limit.nats}
    return {"passed": False, "short": {"ceiling": shortfall.ceiling, "because": shortfall.because}}


def distance(p: np.ndarray, q: np.ndarray) -> dict[str, float]:
    """Of two tables of log-probabilities [n, vocabulary]. A mean KL below 0 is rounding, and given as 0."""
    return {
        "max_delta_log_probability": float(np.abs(p - q).max()),
        "mean_kl": max(0.0, float((np.exp(p) * (p - q.astype(np.float64))).sum(-1).mean())),
        "same_top1": float((p.argmax(-1) == q.argmax(-1)).mean()),
    }

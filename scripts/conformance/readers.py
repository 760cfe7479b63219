"""Readers: other programs that load our checkpoints. A new one is an entry in READERS, a script and a list of packages.

It knows how to run them and how to hold their answers against r1quant's own; it does not know how a checkpoint is made.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from conformance.environments import HERE
from conformance.foreign import LOG_PROBABILITIES, RESULT

LIMIT = 1e-2  # nats, on the log-probability of any token at any position
TIMEOUT = 1800.0  # seconds, for all jobs of one reader


@dataclass(frozen=True)
class Reader:
    """One way in which another program loads a checkpoint: `script`, run with `arguments` in `environment`.

    formats   what it reads
    refusal   words of the error with which it is known to refuse asymmetric grids; empty where it reads them
    """

    name: str
    environment: str
    script: str
    arguments: tuple[str, ...]
    formats: tuple[str, ...]
    refusal: str = ""


READERS = (
    Reader("transformers", "gptqmodel", "gptqmodel_reader.py", ("transformers",), ("gptq",)),
    Reader("gptqmodel", "gptqmodel", "gptqmodel_reader.py", ("gptqmodel",), ("gptq",), "only supported if produced by"),
)


@dataclass(frozen=True, eq=False)
class Expected:
    """A checkpoint as r1quant itself reads it.

    folder             the checkpoint
    format, symmetric  what it is written in, and on which kind of grid
    tokens             an .npy file, int64 [n]
    weights            the hash of every dequantized weight, by the name of its linear
    log_probabilities  float32 [n, vocabulary]
    """

    name: str
    format: str
    symmetric: bool
    folder: Path
    tokens: Path
    weights: Mapping[str, str]
    log_probabilities: np.ndarray


def read(reader: Reader, python: Path, expected: Sequence[Expected], work: Path) -> list[dict[str, Any]]:
    """What a reader makes of the checkpoints that are in one of its formats: a row of the report each."""
    mine = [checkpoint for checkpoint in expected if checkpoint.format in reader.formats]
    outs = [work / f"{checkpoint.name}-{reader.name}" for checkpoint in mine]
    for out in outs:
        out.mkdir()
    jobs = [
        {"checkpoint": str(checkpoint.folder), "tokens": str(checkpoint.tokens), "out": str(out)}
        for checkpoint, out in zip(mine, outs, strict=True)
    ]
    listed, log = work / f"{reader.name}.json", work / f"{reader.name}.log"
    listed.write_text(json.dumps(jobs), "utf-8")
    died = _run([str(python), str(HERE / reader.script), *reader.arguments, str(listed)], log)
    rows = []
    for checkpoint, out in zip(mine, outs, strict=True):
        result = json.loads((out / RESULT).read_text("utf-8")) if (out / RESULT).is_file() else {"error": died}
        row = compare(checkpoint, result, out / LOG_PROBABILITIES, "" if checkpoint.symmetric else reader.refusal)
        rows.append({"reader": reader.name, "checkpoint": checkpoint.name, **row})
    return rows


def _run(command: list[str], log: Path) -> str:
    """Runs a reader. Returns how it ended, for jobs that it has not done."""
    with log.open("w") as file:
        try:
            ended = str(subprocess.run(command, check=False, timeout=TIMEOUT, stdout=file, stderr=file).returncode)
        except subprocess.TimeoutExpired as error:
            ended = str(error)
    return f"{log.read_text('utf-8', 'replace')[-2000:]}\nthe reader ended with {ended}"


def compare(mine: Expected, result: Mapping[str, Any], log_probabilities: Path, refusal: str) -> dict[str, Any]:
    """What the verdict rests on, and `passed`. A known refusal is as it should be; anything else would be news."""
    if "error" in result:
        return {"passed": bool(refusal) and refusal in result["error"], **result}
    hashes, kept = result["weights"], {key: value for key, value in result.items() if key != "weights"}
    differing = [name for name in sorted(mine.weights.keys() | hashes) if mine.weights.get(name) != hashes.get(name)]
    p, q = mine.log_probabilities, np.load(log_probabilities)
    if p.shape != q.shape:
        return {"passed": False, **kept, "error": f"log-probabilities of shape {q.shape} instead of {p.shape}"}
    worst = float(np.abs(p - q).max())
    return {
        "passed": not refusal and not differing and worst < LIMIT,
        **kept,
        "linears": len(mine.weights),
        "differing_linears": differing,
        "max_delta_log_probability": worst,
        "mean_kl": float((np.exp(p) * (p - q.astype(np.float64))).sum(-1).mean()),
        "same_top1": float((p.argmax(-1) == q.argmax(-1)).mean()),
    }

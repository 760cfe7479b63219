"""Readers: other programs that load our checkpoints. A new one is an entry in READERS, a script and a list of packages.

It knows how to run them; it does not know how a checkpoint is made or what a good answer is.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conformance.environments import HERE, VARIABLES
from conformance.foreign import LOG_PROBABILITIES, RESULT

TIMEOUT = 1800.0  # seconds, for all jobs of one reader


@dataclass(frozen=True)
class Limit:
    """How far a reader's log-probabilities may be from ours: `what` (a key of the comparison), below `nats`."""

    what: str
    nats: float
    because: str


BAR = 1e-3  # nats of mean KL, for every reader that does not compute in float32
FLOAT32 = Limit("max_delta_log_probability", 1e-2, "it computes in float32")
HALF = Limit("mean_kl", BAR, "it computes, or rounds weights, in 16 bits")
INT8 = Limit("mean_kl", BAR, "its kernels round the activations of every linear to 8 bits")


@dataclass(frozen=True)
class Refusal:
    """Words of the error with which a reader is known to refuse checkpoints that it should read, or might.

    variants   which ones
    symmetric  of which kind of grid; None for both
    mixed      only where linears differ in bits
    """

    words: str
    variants: tuple[str, ...]
    symmetric: bool | None = None
    mixed: bool = False


@dataclass(frozen=True)
class Shortfall:
    """A variant of a run with which a reader is known to miss its limit.

    ceiling  nats that it stays below all the same; from there on it has become worse, and fails
    because  the reason
    """

    run: str
    variant: str
    ceiling: float
    because: str


@dataclass(frozen=True)
class Reader:
    """One way in which another program loads a checkpoint: `script`, run with `arguments` in `environment`.

    variants  what it reads, each with the limit that holds there
    uniform   why it is not asked about runs whose linears differ in bits; empty where it is
    """

    name: str
    environment: str
    script: str
    arguments: tuple[str, ...]
    variants: Mapping[str, Limit]
    refusals: tuple[Refusal, ...] = ()
    shortfalls: tuple[Shortfall, ...] = ()
    uniform: str = ""

    def refusal(self, variant: str, symmetric: bool, mixed: bool) -> str:
        """The words of a known refusal, empty where it reads the checkpoint."""
        alike = (r for r in self.refusals if variant in r.variants and r.mixed <= mixed)
        mine = (r for r in alike if r.symmetric in (None, symmetric))
        return next((refusal.words for refusal in mine), "")

    def shortfall(self, run: str, variant: str) -> Shortfall | None:
        """The known one; None where the reader meets its limit."""
        return next((s for s in self.shortfalls if (s.run, s.variant) == (run, variant)), None)


GPTQ = {"gptq": FLOAT32, "gptq-v2": FLOAT32, "awq": HALF}
PACKED = ("compressed-tensors", "compressed-tensors-int")
ONNX = {"onnx": FLOAT32, "onnx-qdq": FLOAT32, "onnx-int8": INT8, "onnx-float16": HALF}
NEWER = Refusal("only supported if produced by gptqmodel version", ("gptq",), symmetric=False)
SIZES = Refusal("mismatch", ("gptq", "gptq-v2"), mixed=True)  # they know one number of bits alone
# Measured: 4.6e-3 and 2.3e-3. The same integers, computed in float32 by the same programs, are below 1e-8.
ROUNDED_BY_ONNXRUNTIME = Shortfall(
    "smollm2-w4g64",
    "onnx-int8",
    6e-3,
    "accuracy level 4 rounds the activations of every linear to 8 bits, which was asked for; level 1, the default, "
    "does not, and runs the same integers exactly",
)
ROUNDED_BY_LLAMA_CPP = Shortfall(
    "smollm2-w4g64",
    "gguf",
    3e-3,
    "llama.cpp rounds the activations of every linear to 8 bits, whoever wrote the file: on the Q4_1 file that SmolLM2 "
    "comes as, which nobody here has written, it is 3.3e-3 from its own float32 self",
)

READERS = (
    Reader("transformers", "gptqmodel", "gptqmodel_reader.py", ("transformers",), GPTQ, (SIZES,)),
    Reader("gptqmodel", "gptqmodel", "gptqmodel_reader.py", ("gptqmodel",), GPTQ, (NEWER,)),
    Reader("auto-gptq", "auto-gptq", "auto_gptq_reader.py", (), {"gptq": FLOAT32}, (SIZES,)),
    Reader("autoawq", "autoawq", "autoawq_reader.py", (), {"awq": HALF}),
    Reader(
        "compressed-tensors",
        "compressed-tensors",
        "compressed_tensors_reader.py",
        ("float32",),
        dict.fromkeys(PACKED, FLOAT32),
    ),
    Reader(
        "transformers-ct",
        "compressed-tensors",
        "compressed_tensors_reader.py",
        ("transformers",),
        dict.fromkeys(PACKED, HALF),
        (Refusal("mismatch", ("compressed-tensors",), symmetric=False),),
    ),
    Reader(
        "transformers-ct-dense",
        "compressed-tensors",
        "compressed_tensors_reader.py",
        ("dequantized",),
        dict.fromkeys(PACKED, HALF),
        uniform="transformers takes the first config group for all linears where it dequantizes on loading",
    ),
    Reader("onnxruntime", "genai", "onnxruntime_reader.py", (), ONNX, shortfalls=(ROUNDED_BY_ONNXRUNTIME,)),
    Reader("onnxruntime-genai", "genai", "genai_reader.py", (), ONNX, shortfalls=(ROUNDED_BY_ONNXRUNTIME,)),
    Reader("optimum-onnx", "optimum", "optimum_reader.py", (), ONNX, shortfalls=(ROUNDED_BY_ONNXRUNTIME,)),
    Reader("gguf", "gguf", "gguf_reader.py", (), {"gguf": FLOAT32}),
    Reader("llama.cpp", "llamacpp", "llamacpp_reader.py", (), {"gguf": FLOAT32}),
    Reader(
        "llama.cpp kernels",
        "llamacpp",
        "llamacpp_kernels_reader.py",
        (),
        {"gguf": INT8},
        shortfalls=(ROUNDED_BY_LLAMA_CPP,),
    ),
)


@dataclass(frozen=True)
class Job:
    """A checkpoint for a reader, and what is asked of it.

    tokens   an .npy file, int64 [n], to be scored
    prompts  token ids to go on from
    """

    name: str
    folder: Path
    tokens: Path
    prompts: Sequence[Sequence[int]]
    new_tokens: int


@dataclass(frozen=True)
class Answer:
    """result.json of a job (`error` in it where it failed), and where its log-probabilities are if it gave any."""

    result: Mapping[str, Any]
    log_probabilities: Path


def ask(reader: Reader, python: Path, jobs: Sequence[Job], work: Path) -> list[Answer]:
    """Has a reader do the jobs, one after the other in one process, and in one more where it died."""
    outs = [work / f"{job.name}-by-{reader.name.replace(' ', '')}" for job in jobs]
    for out in outs:
        out.mkdir()
    left, ended = list(zip(jobs, outs, strict=True)), ""
    while left:
        ended = _run(reader, python, left, work)
        undone = [(job, out) for job, out in left if not (out / RESULT).is_file()]
        if undone:  # the first of them killed it; the others were not begun
            (undone[0][1] / RESULT).write_text(json.dumps({"error": ended}), "utf-8")
        left = undone[1:]
    return [Answer(json.loads((out / RESULT).read_text("utf-8")), out / LOG_PROBABILITIES) for out in outs]


def _run(reader: Reader, python: Path, jobs: Sequence[tuple[Job, Path]], work: Path) -> str:
    """Runs a reader. Returns how it ended, for the job that it has not done."""
    listed, log = work / "jobs.json", work / "reader.log"
    entries = [
        {
            "checkpoint": str(job.folder),
            "tokens": str(job.tokens),
            "out": str(out),
            "prompts": job.prompts,
            "new_tokens": job.new_tokens,
        }
        for job, out in jobs
    ]
    listed.write_text(json.dumps(entries), "utf-8")
    command = [str(python), str(HERE / reader.script), *reader.arguments, str(listed)]
    with log.open("w") as file:
        try:
            done = subprocess.run(
                command,
                check=False,
                timeout=TIMEOUT,
                stdout=file,
                stderr=file,
                cwd=work,
                env=os.environ | VARIABLES,
            )
            ended = str(done.returncode)
        except subprocess.TimeoutExpired as error:
            ended = str(error)
    return f"{log.read_text('utf-8', 'replace')[-2000:]}\nthe reader ended with {ended}"

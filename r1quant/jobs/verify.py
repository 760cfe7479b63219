"""verify: how far a quantized checkpoint is from the model it was made from, on text that neither was fitted to."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from r1quant import calibration, provenance
from r1quant.archs import Architecture, architecture_of
from r1quant.artifact import Artifact
from r1quant.checkpoint import Checkpoint
from r1quant.errors import CheckpointError, RecipeError
from r1quant.jobs.artifacts import open_artifact
from r1quant.jobs.folder import RECORD
from r1quant.jobs.quantize import default_text
from r1quant.jobs.runtimes import backend_of, open_runtime
from r1quant.metrics.divergence import TokenScores, summary
from r1quant.metrics.gates import judge, parse
from r1quant.planner import check_tensors, layer_count
from r1quant.progress import Progress, Silent
from r1quant.sources import open_model
from r1quant.tokenizer import Tokenizer

NOTHING = TokenScores(np.zeros(8), np.zeros(8), np.zeros(8), np.zeros(8, np.bool_))  # shows what a record has


@dataclass(frozen=True)
class Verified:
    """The measurement as a record: metrics, and everything needed to repeat it."""

    record: Mapping[str, Any]

    @property
    def passed(self) -> bool:
        """Whether every gate holds."""
        return all(verdict["passed"] for verdict in self.record["gates"])

    def as_dict(self) -> dict[str, Any]:
        return dict(self.record)


def newest_output(folder: Path) -> Path:
    """The quantized checkpoint last written into this folder. Raises CheckpointError where there is none."""
    found = [path.parent for path in folder.glob(f"*/{RECORD}")]
    if not found:
        raise CheckpointError(
            f"no quantized checkpoint in {folder}", "name one, or make one first: r1quant quantize --bits 4"
        )
    return max(found, key=lambda path: (path / RECORD).stat().st_mtime_ns)


def verify(
    out: str | Path | None = None,
    baseline: str | Path | None = None,
    text: str | None = None,
    windows: int = 24,
    seq_len: int = 512,
    device: str = "auto",
    dtype: str = "float32",
    progress: Progress | None = None,
    gate: Sequence[str] = (),
    backend: str = "torch",
) -> Verified:
    """Perplexity of both models and KL(baseline || quantized) in nats on windows x seq_len tokens of a text.

    out       a quantized model in any format that is read; the newest one in the current folder where it is left out
    baseline  the model it was made from; looked up in the checkpoint's record where it is left out
    text      a text or JSONL file; the bundled held-out text where it is left out
    backend   what runs the quantized model: torch, from its weights; onnxruntime or llamacpp, which a format is made
              for; or auto, which takes that one. The baseline runs in torch
    gate      conditions on the record, such as "kl.mean<0.05" or "perplexity.ratio_ci95.high<1.05"
    """
    begun, progress = time.monotonic(), progress or Silent()
    if windows < 1 or seq_len < 2:
        raise RecipeError(f"windows {windows} x seq-len {seq_len} is no text", "use at least 1 x 2")
    gates = [parse(text) for text in gate]
    judge(gates, summary(NOTHING, 2))  # a gate on a key that is not there is refused before the run
    weights = open_artifact(out if out is not None else newest_output(Path()))
    base = open_model(baseline if baseline is not None else _source_of(weights))
    arch = _same_model(base, weights)
    tokens = calibration.evaluation_text(
        text or default_text(base), Tokenizer.of(base), windows, seq_len, vocabulary=int(base.config["vocab_size"])
    )
    from r1quant.backends.torch import compare
    from r1quant.forward import DTYPES, pick_device

    if dtype not in DTYPES:
        raise RecipeError(f"dtype {dtype!r} is not supported", f"choose from {', '.join(DTYPES)}")
    ran, layers = backend_of(weights, backend), layer_count(base.config, len(base.tensors))
    quantized = weights if ran == "torch" else open_runtime(weights, seq_len)[1]
    progress.begin("verifying", layers + (layers if ran == "torch" else tokens.windows))
    scores = compare(
        base, quantized, arch, tokens.tokens, pick_device(device), DTYPES[dtype], lambda: progress.advance(1)
    )
    record = {
        "schema": "r1quant.verification/1",
        "model": base.name,
        "out": weights.source,
        **(measured := summary(scores, tokens.windows)),
        "gates": judge(gates, measured),
        "text": {"source": tokens.source, "sha256": tokens.sha256, "windows": tokens.windows, "seq_len": seq_len},
        "dtype": dtype,
        "backend": ran,
        "environment": provenance.environment(),
        "seconds": time.monotonic() - begun,
        "peak_rss_bytes": provenance.peak_rss_bytes(),
    }
    return Verified(record)


def _source_of(quantized: Artifact) -> str:
    """What the record of a checkpoint says it was made from."""
    from r1quant.checkpoint import read_json

    path = quantized.folder / RECORD
    record = read_json(path) if path.is_file() else {}
    source = record.get("source") if isinstance(record, dict) else None
    if not isinstance(source, str):
        raise CheckpointError(f"{quantized.source} does not say what it was made from", "name it with --baseline")
    local = (quantized.folder / source).resolve()
    return str(local) if local.exists() else source


def _same_model(base: Checkpoint, quantized: Artifact) -> Architecture:
    """Raises CheckpointError where the two cannot be the same model before and after."""
    if base.config.get("quantization_config") is not None:
        raise CheckpointError(f"the baseline {base.source} is quantized itself", "name the float model")
    arch, _ = architecture_of(base.config), layer_count(base.config, len(base.tensors))
    for problem in check_tensors(base, arch):
        raise problem.kind(f"{base.source}: {problem.message}", problem.hint)
    keys = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size", "intermediate_size")
    for key in keys:
        before, after = base.config.get(key), quantized.config.get(key)
        if before != after:
            raise CheckpointError(
                f"{key} is {before} in the baseline and {after} in {quantized.source}",
                "name the model it was made from with --baseline",
            )
    return arch

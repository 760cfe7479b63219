"""Estimates: what a quantization will take in bytes and seconds. Output bytes are exact, the others a cost model."""

from __future__ import annotations

import os
from dataclasses import dataclass

from r1quant import selfcalib
from r1quant.archs import size
from r1quant.calibration import SELF
from r1quant.checkpoint import Checkpoint
from r1quant.formats.table import CODECS
from r1quant.layout import Layout
from r1quant.planned import Grids, LinearPlan
from r1quant.recipe import Recipe

PROCESS_BYTES = 700_000_000  # interpreter, torch, transformers and compiled kernels
KEPT_LIMIT = 1 << 30  # stage inputs up to this size are kept, larger ones are computed again


@dataclass(frozen=True)
class Estimate:
    """Predictions, in bytes and seconds. Output bytes are exact; the others come from a cost model."""

    output_bytes: int
    run_bytes: int
    peak_rss_bytes: int
    seconds: float


def estimated(
    checkpoint: Checkpoint,
    recipe: Recipe,
    linears: tuple[LinearPlan, ...],
    grids: Grids,
    layout: Layout,
) -> Estimate:
    """grids: of every linear; layout: of the files that are written."""
    output = layout.nbytes + sum(map(len, checkpoint.carried.values())) + len(checkpoint.config_text)
    rounded = [linear for linear in linears if grids[linear.name] is not None]
    parts = sum(linear.stored(grids[linear.name], CODECS[recipe.format]) for linear in rounded)
    first = [linear for linear in linears if linear.layer == 0]
    largest = max((linear.weights for linear in first), default=0)
    weights = sum(linear.weights for linear in linears)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not recipe.calibrated:
        return Estimate(output, parts, PROCESS_BYTES + largest * 12, 10 + weights / (4e6 * cores))
    tokens, hidden = recipe.samples * recipe.seq_len, size(checkpoint.config, "hidden_size")
    wide = max((linear.shape[1] for linear in first), default=0)
    layer = sum(linear.weights for linear in first)
    stacks = [[x for x in first if x.stage == stage] for stage in range(4)]
    solve = max(sum(x.weights for x in s) * 20 + 12 * s[0].shape[1] ** 2 for s in stacks if s) if first else 0
    boundary = tokens * hidden * 2
    held = 2 * tokens * hidden * (2 if recipe.dtype in ("bfloat16", "float16") else 4)  # two boundaries on the disk
    embedding = size(checkpoint.config, "vocab_size") * hidden * 2
    kept = tokens * wide * 2 if tokens * wide * 2 <= KEPT_LIMIT else 0
    memory = PROCESS_BYTES + max(embedding, layer * 2 + solve) + 2 * boundary + kept
    squares = sum(s[0].shape[1] ** 2 for s in stacks if s) * (weights / max(1, layer))
    work = 2 * tokens * (weights + squares) + 4 * sum(x.shape[0] * x.shape[1] ** 2 for x in linears)
    seconds = 20 + work / (1.2e11 * cores)
    if recipe.calib == SELF:
        writing = selfcalib.predict(checkpoint, recipe, weights)
        memory, seconds = max(memory, PROCESS_BYTES + writing.memory_bytes), seconds + writing.seconds
    return Estimate(output, parts + held, memory, seconds)

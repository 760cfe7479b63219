"""What rounding each linear would cost at each number of bits, before the model is quantized.

After the sensitivity pass the float model runs once more; of every linear 1/2 tr(H_O E H E^T) is the KL divergence that
an error E of its weight costs to second order, E being what the recipe's own method leaves. Plain rounding would not do
in its place: how much less GPTQ loses differs from linear to linear. Each layer's figures are kept as they are made.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from r1quant import atomic
from r1quant.budget import Predictions
from r1quant.forward import Decoder, pick_device, pick_dtype
from r1quant.jobs.layer import ENDS, Chunks, Stream, sums_of
from r1quant.jobs.samples import cache_folder
from r1quant.jobs.sensitivity import Sensitivities, measured
from r1quant.methods import gptq, rtn
from r1quant.planner import Plan
from r1quant.progress import Progress
from r1quant.provenance import sha256
from r1quant.recipe import FLOAT, Recipe
from r1quant.stats import Stats

SOURCES = {
    "gptq": "a trial rounding of each layer alone, after a sensitivity pass",
    "rtn": "rounding to nearest, after a sensitivity pass",
}


def predicted(
    made: Plan, tokens: npt.NDArray[np.int64], seen: Mapping[str, str], bits: Sequence[int], progress: Progress
) -> Predictions:
    """Of every linear of a plan, at each of the bits.

    tokens: int64 [windows, seq_len]; seen: all that decides what the float model does with them.
    """
    recipe = made.recipe
    device = pick_device(recipe.device)
    losses: dict[str, Mapping[int, float]] = {}
    with torch.no_grad():
        decoder = Decoder(
            made.checkpoint.unrounded(), made.arch, device, pick_dtype(recipe.dtype, device), tokens.shape[1]
        )
        passes = recipe.draws, recipe.guided_share
        guidance = measured(decoder, tokens, cache_folder(), seen, progress, *passes)
        stated = sha256(json.dumps(_stated(recipe, bits), sort_keys=True).encode())[:16]
        hidden = decoder.embed(torch.from_numpy(tokens))
        progress.begin("predicting", made.layers)
        for index in range(made.layers):
            path = guidance.folders[0] / f"losses-{stated}-{index:05d}.json"
            losses |= _layer(made, index, decoder, hidden, guidance, path, bits)
            progress.advance(1, f"layer {index + 1}/{made.layers}")
    return Predictions(losses, SOURCES["gptq" if recipe.method == "gptq" else "rtn"])


def _stated(recipe: Recipe, bits: Sequence[int]) -> dict[str, Any]:
    """What decides the losses, beside the first sensitivity pass."""
    decided = ("method", "scale_search", "act_order", "damping", "guided", "draws")
    return asdict(recipe.grid) | {"bits": sorted(bits)} | {name: getattr(recipe, name) for name in decided}


def _layer(
    made: Plan,
    index: int,
    decoder: Decoder,
    hidden: torch.Tensor,
    guidance: Sensitivities,
    path: Path,
    bits: Sequence[int],
) -> dict[str, Mapping[int, float]]:
    """Of the linears of one layer; hidden [windows, seq_len, width] is replaced by its output."""
    prefix, known, needed = made.arch.layer_prefix(index), _known(path), guidance.layer(index)
    found: dict[str, Mapping[int, float]] = {}
    with decoder.layer(index) as layer:
        stream = Stream(layer, hidden)
        inputs: Chunks = stream.chunks
        for stage, linears in enumerate(made.arch.layer.stages):
            inputs = stream.inputs(stage, inputs)
            if known is None:
                sums = {name: sums_of(layer, (name,), needed) for name in linears}
                shared = sums_of(layer, linears, needed if made.recipe.guided else None)
                for x in inputs():
                    for each in (shared, *sums.values()):
                        each.add(x)
                stats = {name: each.stats for name, each in sums.items()}
                found |= _losses(made, prefix, stats, shared.stats, bits)
            if stage in ENDS:
                stream.add(stage, inputs)
    if known is not None:
        return known
    atomic.write_bytes(path, json.dumps(found).encode())
    return found


def _losses(
    made: Plan, prefix: str, stats: Mapping[str, Stats], shared: Stats, bits: Sequence[int]
) -> dict[str, Mapping[int, float]]:
    """Of linears that share their input; shared: the statistics that they would be rounded by."""
    recipe, read = made.recipe, made.checkpoint.unrounded().read
    weights = [read(f"{prefix}{name}.weight").to(shared.hessian.device, torch.float32) for name in stats]
    found: dict[str, dict[int, float]] = {prefix + name: {} for name in stats}
    for count in bits:
        if count == FLOAT:
            continue
        grid, stack = replace(recipe.grid, bits=count), torch.cat(weights)
        if recipe.method == "gptq":
            settled = gptq.quantize(
                stack, shared, grid, search=recipe.scale_search, act_order=recipe.act_order, damping=recipe.damping
            )
            rounded = settled.qlinear
        else:
            rounded = rtn.quantize(stack.cpu().numpy(), grid, recipe.scale_search)
        wrong = stack - torch.from_numpy(rounded.dequantize()).to(stack.device)
        start = 0
        for (name, each), weight in zip(stats.items(), weights, strict=True):
            rows = slice(start, start + len(weight))
            found[prefix + name][count] = float(gptq.predicted(wrong[rows], each).sum())
            start = rows.stop
    return dict(found)


def _known(path: Path) -> dict[str, Mapping[int, float]] | None:
    try:
        read = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return {name: {int(bits): loss for bits, loss in losses.items()} for name, losses in read.items()}

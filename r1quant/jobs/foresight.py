"""What rounding each linear to nearest would cost at each number of bits, before anything is rounded.

After the sensitivity pass the float model runs once more; of every linear 1/2 tr(H_O E H E^T) is the KL divergence that
an error E of its weight costs to second order. Each layer's figures are kept as they are made.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from r1quant import atomic
from r1quant.budget import Predictions
from r1quant.forward import Decoder, pick_device, pick_dtype
from r1quant.jobs.layer import ENDS, Stream, sums_of
from r1quant.jobs.samples import cache_folder
from r1quant.jobs.sensitivity import Sensitivities, measured
from r1quant.methods import gptq, rtn
from r1quant.planner import Plan
from r1quant.progress import Progress
from r1quant.provenance import sha256
from r1quant.recipe import FLOAT
from r1quant.stats import Stats

SOURCE = "rounding to nearest, after a sensitivity pass"


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
        guidance = measured(decoder, tokens, cache_folder(), seen, progress)
        stated = json.dumps([asdict(recipe.grid) | {"bits": sorted(bits)}, recipe.scale_search], sort_keys=True)
        hidden = decoder.embed(torch.from_numpy(tokens))
        progress.begin("predicting", made.layers)
        for index in range(made.layers):
            path = guidance.folders[0] / f"losses-{sha256(stated.encode())[:16]}-{index:05d}.json"
            losses |= _layer(made, index, decoder, hidden, guidance, path, bits)
            progress.advance(1, f"layer {index + 1}/{made.layers}")
    return Predictions(losses, SOURCE)


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
        for stage, linears in enumerate(made.arch.layer.stages):
            inputs = stream.inputs(stage)
            if known is None:
                sums = {name: sums_of(layer, (name,), needed) for name in linears}
                for x in inputs():
                    for each in sums.values():
                        each.add(x)
                found |= {prefix + name: _losses(made, prefix + name, each.stats, bits) for name, each in sums.items()}
            if stage in ENDS:
                stream.add(stage, inputs)
    if known is not None:
        return known
    atomic.write_bytes(path, json.dumps(found).encode())
    return found


def _losses(made: Plan, linear: str, stats: Stats, bits: Sequence[int]) -> dict[int, float]:
    weight = made.checkpoint.unrounded().read(f"{linear}.weight").float()
    found = {}
    for count in bits:
        if count != FLOAT:
            q = rtn.quantize(weight.numpy(), replace(made.recipe.grid, bits=count), made.recipe.scale_search)
            wrong = weight - torch.from_numpy(q.dequantize())
            found[count] = float(gptq.predicted(wrong.to(stats.hessian.device), stats).sum())
    return found


def _known(path: Path) -> dict[str, Mapping[int, float]] | None:
    try:
        read = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return {name: {int(bits): loss for bits, loss in losses.items()} for name, losses in read.items()}

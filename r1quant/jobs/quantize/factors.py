"""The pass that chooses the factors of AWQ and SmoothQuant, kept so that it is made once for a model and text.

The float model runs forward with one layer in memory. What each stage reads decides the factors of its linears; they
change no output, so that the next layer need not know of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

import numpy as np
import numpy.typing as npt
import torch

from r1quant.checkpoint.safetensors import Checkpoint
from r1quant.core.grid import Grid
from r1quant.engine.layer_pass import Chunks, LayerPass
from r1quant.engine.methods import rtn
from r1quant.engine.stats import gather
from r1quant.engine.transforms import awq, smooth
from r1quant.engine.transforms.folds import Fold, folded, folds
from r1quant.errors import NumericError
from r1quant.jobs.quantize.activations import load, save
from r1quant.jobs.quantize.fingerprint import decoder_of
from r1quant.planning.planner import Plan
from r1quant.progress import Progress
from r1quant.recipe import Recipe
from r1quant.storage.cache import cache_folder, key
from r1quant.storage.rundir import RunDir


def transformed(made: Plan, tokens: npt.NDArray[np.int64], seen: Mapping[str, str], progress: Progress) -> Checkpoint:
    """The checkpoint of a plan with the factors folded that its recipe asks for.

    tokens: int64 [windows, seq_len]; seen: all that decides what the float model does with them. Raises NumericError
    where the model overflows on the text.
    """
    recipe, cache = made.recipe, cache_folder()
    identity = {**seen, "factors": str(recipe.factors), "smooth": str(recipe.smooth), "kind": "factors by stage"}
    identity |= {f"grid.{key}": str(value) for key, value in asdict(recipe.grid).items()}
    cache.mkdir(parents=True, exist_ok=True)

    def waiting() -> None:
        progress.note("another process chooses the factors of this model and text: waiting for it")

    folder = cache / f"factors-{key(identity)}"
    with RunDir(folder, waiting) as run, torch.no_grad():
        run.claim(identity)
        if run.done(made.layers) < made.layers:
            _choose(made, tokens, run, progress)
        run.forget_boundaries(None)
        return folded(made.checkpoint, {index: load(run.part(index)) for index in range(made.layers)})


def _choose(made: Plan, tokens: npt.NDArray[np.int64], run: RunDir, progress: Progress) -> None:
    """Writes the parts that are missing."""
    first = run.done(made.layers)
    while first and not run.boundary(first).exists():
        first -= 1
    decoder = decoder_of(made, tokens.shape[1])
    hidden = load(run.boundary(first))["hidden"] if first else decoder.embed(torch.from_numpy(tokens))
    progress.begin("choosing factors", made.layers)
    progress.advance(first)
    for index in range(first, made.layers):
        with decoder.layer(index) as layer:
            scales = _layer(made, index, LayerPass(layer, hidden))
        if index + 1 < made.layers:
            save(run.boundary(index + 1), {"hidden": hidden})
        save(run.part(index), scales)
        run.forget_boundaries(keep=index + 1)
        progress.advance(1, f"layer {index + 1}/{made.layers}")


def _layer(made: Plan, index: int, layer_pass: LayerPass) -> dict[str, torch.Tensor]:
    """The factors of each stage, float32 [K]. The hidden states of the pass are replaced by the layer's output."""
    prefix, scales = made.arch.layer_prefix(index), dict[str, torch.Tensor]()
    by_stage = folds(made.arch, made.checkpoint.config)
    for stage, inputs in layer_pass.stages():
        fold = by_stage[stage.name]
        grid = made.grids[prefix + fold.consumers[0]]
        read = made.checkpoint.unrounded().read
        weight = torch.cat([read(f"{prefix}{name}.weight").float() for name in fold.consumers])
        weight = weight.to(layer_pass.layer.device)
        scale = torch.ones(weight.shape[1])
        if grid is not None:
            scale = _scale(made.recipe, fold, weight, inputs, grid)
        if not bool(torch.isfinite(scale).all()):
            raise NumericError.overflow(f"the inputs of {prefix}{fold.consumers[0]} hold")
        scales[stage.name] = scale.cpu()
    return scales


def _scale(recipe: Recipe, fold: Fold, weight: torch.Tensor, inputs: Chunks, grid: Grid) -> torch.Tensor:
    if recipe.smooth is not None:
        peaks = (x.reshape(-1, x.shape[-1]).abs().amax(0).float() for x in inputs())
        return smooth.scale(weight, torch.stack(list(peaks)).amax(0), fold, recipe.smooth)

    def rounded(rows: torch.Tensor, importance: torch.Tensor) -> torch.Tensor:
        q = rtn.quantize(rows.cpu().numpy(), grid, False, importance.cpu().numpy())
        return torch.from_numpy(q.dequantize()).to(rows.device)

    stats = gather(inputs(), weight.shape[1], weight.device)
    if not stats.finite:
        return stats.hessian.diagonal()
    return awq.search(weight, stats.hessian, fold, rounded).scale

"""The pass that chooses the factors of AWQ and SmoothQuant, kept so that it is made once for a model and text.

The float model runs forward with one layer in memory. What each stage reads decides the factors of its linears; they
change no output, so that the next layer need not know of them.
"""

from __future__ import annotations

from functools import partial

import torch

from r1quant.checkpoint.safetensors import Checkpoint
from r1quant.core.grid import ValueGrid
from r1quant.engine.grids.rounding import nearest
from r1quant.engine.layer_pass import Chunks, LayerPass
from r1quant.engine.stats import gather
from r1quant.engine.transforms import awq, smooth
from r1quant.engine.transforms.folds import Fold, folded, folds
from r1quant.errors import NumericError
from r1quant.jobs.quantize.activations import load, save
from r1quant.jobs.quantize.calibration import CalibrationRun, decoder_of
from r1quant.jobs.quantize.layer_loop import LayerDone, LayerLoop, States
from r1quant.planning.plan import Plan
from r1quant.progress import Progress
from r1quant.recipe import Recipe
from r1quant.storage.cache import cache_folder, entry
from r1quant.storage.rundir import RunDir

KIND = "factors by stage"  # what is kept of a layer; part of the fingerprint


def transformed(plan: Plan, calibration: CalibrationRun, progress: Progress) -> Checkpoint:
    """The checkpoint of a plan with the factors folded that its recipe asks for.

    Raises NumericError if the model overflows on the text.
    """
    cache, fingerprint = cache_folder(), {**calibration.fingerprint, "kind": KIND}
    cache.mkdir(parents=True, exist_ok=True)

    def waiting() -> None:
        progress.note("another process chooses the factors of this model and text: waiting for it")

    with RunDir(entry(cache, "factors", fingerprint), waiting) as run, torch.no_grad():
        run.claim(fingerprint)
        if run.done(plan.layers) < plan.layers:
            _choose(plan, calibration, run, progress)
        run.forget_layer_inputs(None)
        return folded(plan.checkpoint, {index: load(run.layer_file(index)) for index in range(plan.layers)})


def _choose(plan: Plan, calibration: CalibrationRun, run: RunDir, progress: Progress) -> None:
    """Writes the layer files that are missing, each with the factors of its stages."""
    decoder = decoder_of(plan, calibration.tokens.shape[1])

    def start() -> States:
        return {"hidden": decoder.embed(torch.from_numpy(calibration.tokens))}

    def step(index: int, states: States) -> LayerDone:
        with decoder.layer(index) as layer:
            scales = _layer(plan, index, LayerPass(layer, states["hidden"]))
        return LayerDone(partial(save, named=scales))

    LayerLoop("choosing factors", plan.layers, start, step).run(run, progress)


def _layer(plan: Plan, index: int, layer_pass: LayerPass) -> dict[str, torch.Tensor]:
    """The factors of each stage, float32 [K]. The hidden states of the pass are replaced by the layer's output."""
    prefix, scales = plan.arch.layer_prefix(index), dict[str, torch.Tensor]()
    by_stage = folds(plan.arch, plan.checkpoint.config)
    for stage, inputs in layer_pass.stages():
        fold = by_stage[stage.name]
        grid = plan.grids[prefix + fold.consumers[0]]
        read = plan.checkpoint.unrounded().read
        weight = torch.cat([read(f"{prefix}{name}.weight").float() for name in fold.consumers])
        weight = weight.to(layer_pass.layer.device)
        scale = torch.ones(weight.shape[1])
        if grid is not None:
            scale = _scale(plan.recipe, fold, weight, inputs, grid)
        if not bool(torch.isfinite(scale).all()):
            raise NumericError.overflow(f"the inputs of {prefix}{fold.consumers[0]} hold")
        scales[stage.name] = scale.cpu()
    return scales


def _scale(recipe: Recipe, fold: Fold, weight: torch.Tensor, inputs: Chunks, grid: ValueGrid) -> torch.Tensor:
    if recipe.smooth is not None:
        peaks = (x.reshape(-1, x.shape[-1]).abs().amax(0).float() for x in inputs())
        return smooth.scale(weight, torch.stack(list(peaks)).amax(0), fold, recipe.smooth)

    def rounded(rows: torch.Tensor, importance: torch.Tensor) -> torch.Tensor:
        q = nearest(rows.cpu().numpy(), grid, importance.cpu().numpy(), search=False)
        return torch.from_numpy(q.dequantize()).to(rows.device)

    stats = gather(inputs(), weight.shape[1], weight.device)
    if not stats.finite:
        return stats.hessian.diagonal()
    return awq.search(weight, stats.hessian, fold, rounded).scale

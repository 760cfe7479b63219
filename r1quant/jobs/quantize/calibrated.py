"""The loop over layers of a calibrated quantization, with what it needs to go on after a crash.

Before the part of a layer is written, the activations that enter the next one are; so whatever part is the last,
its successor can start.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from r1quant.core.formatting import seconds_text
from r1quant.engine.forward import Decoder
from r1quant.engine.layer import quantize_layer
from r1quant.engine.layer_pass import LayerPass
from r1quant.engine.linear_report import Rounded
from r1quant.errors import NumericError
from r1quant.jobs.quantize import layer_files
from r1quant.jobs.quantize.activations import load, save
from r1quant.jobs.quantize.fingerprint import decoder_of
from r1quant.jobs.quantize.sensitivity import Sensitivities, guidance_of
from r1quant.planning.planner import Plan
from r1quant.progress import Progress
from r1quant.storage.rundir import RunDir

States = Mapping[str, torch.Tensor]  # what enters a layer: `hidden`, and `reference`, that of the float model


def quantize_layers(
    made: Plan, tokens: npt.NDArray[np.int64], seen: Mapping[str, str], run: RunDir, first: int, progress: Progress
) -> None:
    """Writes the parts of the layers from `first` on.

    tokens: int64 [windows, seq_len]; seen: all that decides what the float model does with them.
    """
    while first and not run.boundary(first).exists():
        first -= 1  # a part without the activations after it is made again
    with torch.no_grad():
        job = _Job.of(made, tokens, seen, progress)
        if first:
            states: States = load(run.boundary(first))
            progress.note(f"resuming after layer {first} of {made.layers}")
        else:
            states = job.embedded(tokens)
        progress.begin("quantizing", made.layers)
        progress.advance(first)
        for index in range(first, made.layers):
            begun = time.monotonic()
            done = job.quantized(index, states)
            if index + 1 < made.layers:
                save(run.boundary(index + 1), states)
            layer_files.write(run.part(index), done)
            run.forget_boundaries(keep=index + 1)
            worst = max((rounded.report.relative_loss for rounded in done), default=0.0)
            seconds = time.monotonic() - begun
            progress.advance(
                0.1,
                f"layer {index + 1}/{made.layers} in {seconds_text(seconds)}, worst relative loss {worst:.2e}",
            )


@dataclass(frozen=True, eq=False)
class _Job:
    """decoder: its layers are quantized; beside: those of the float model, where its outputs are aimed at"""

    plan: Plan
    decoder: Decoder
    beside: Decoder | None
    guidance: Sensitivities | None
    progress: Progress

    @classmethod
    def of(cls, made: Plan, tokens: npt.NDArray[np.int64], seen: Mapping[str, str], progress: Progress) -> _Job:
        recipe, decoder = made.recipe, decoder_of(made, tokens.shape[1])
        guidance = guidance_of(decoder, tokens, seen, recipe, progress) if recipe.guided else None
        return cls(made, decoder, decoder_of(made, tokens.shape[1]) if recipe.corrected else None, guidance, progress)

    def embedded(self, tokens: npt.NDArray[np.int64]) -> States:
        hidden = self.decoder.embed(torch.from_numpy(tokens))
        if self.beside is None:
            return {"hidden": hidden}
        return {"hidden": hidden, "reference": hidden[: self.plan.recipe.corrected_windows].clone()}

    def quantized(self, index: int, states: States) -> list[Rounded]:
        """The linears of a layer. What enters it is replaced by what comes out of it, quantized."""
        made, done = self.plan, []
        prefix = made.arch.layer_prefix(index)
        needed = None if self.guidance is None else self.guidance.layer(index)
        with ExitStack() as filled:
            layer_pass, reference = LayerPass(filled.enter_context(self.decoder.layer(index)), states["hidden"]), None
            if self.beside is not None:
                reference = LayerPass(filled.enter_context(self.beside.layer(index)), states["reference"])
            read = self.decoder.weights.read
            for rounded in quantize_layer(layer_pass, reference, needed, prefix, read, made.recipe, made.grids):
                done.append(rounded)
                self.progress.advance(0.9 / len(made.arch.layer.linears), rounded.report.name)
                if rounded.report.remark:
                    self.progress.note(rounded.report.remark)
        if not bool(torch.isfinite(states["hidden"].sum(dtype=torch.float32))):
            raise NumericError.overflow(f"the output of {prefix.rstrip('.')} holds")
        return done

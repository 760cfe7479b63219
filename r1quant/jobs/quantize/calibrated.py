"""A calibrated quantization, layer by layer, while the calibration tokens pass through the model once."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch

from r1quant.arch.tables import is_tied
from r1quant.engine.forward import Decoder, head_name
from r1quant.engine.layer import quantize_layer
from r1quant.engine.layer_pass import LayerPass
from r1quant.engine.linear_report import Rounded
from r1quant.engine.tables import embed_rounded, head_statistics, round_table
from r1quant.errors import NumericError
from r1quant.jobs.quantize import layer_files
from r1quant.jobs.quantize.calibration import CalibrationRun, decoder_of
from r1quant.jobs.quantize.layer_loop import LayerDone, LayerLoop, States
from r1quant.jobs.quantize.sensitivity import Sensitivities, guidance_of
from r1quant.planning.plan import Plan
from r1quant.progress import Progress
from r1quant.storage.rundir import RunDir

INSIDE = 0.9  # of a layer's progress: its linears; the rest is for what is written


def quantize_layers(plan: Plan, calibration: CalibrationRun, folder: RunDir, progress: Progress) -> None:
    """Writes the layer files that are missing."""
    with torch.no_grad():
        job = _Calibrated.of(plan, calibration, progress)
        LayerLoop("quantizing", plan.steps, job.embedded, job.step, INSIDE).run(folder, progress)


@dataclass(frozen=True, eq=False)
class _Calibrated:
    """decoder: its layers are quantized; beside: those of the float model, whose outputs are aimed at."""

    plan: Plan
    calibration: CalibrationRun
    decoder: Decoder
    beside: Decoder | None
    guidance: Sensitivities | None
    progress: Progress

    @classmethod
    def of(cls, plan: Plan, calibration: CalibrationRun, progress: Progress) -> _Calibrated:
        recipe, seq_len = plan.recipe, calibration.tokens.shape[1]
        decoder = decoder_of(plan, seq_len)
        guidance = guidance_of(decoder, calibration, recipe, progress) if recipe.guided else None
        beside = decoder_of(plan, seq_len) if recipe.corrected else None
        return cls(plan, calibration, decoder, beside, guidance, progress)

    def embedded(self) -> States:
        """`hidden`, what enters the first layer; `reference`, what enters that of the float model: the same, of as many
        windows as it runs on."""
        tokens, recipe = torch.from_numpy(self.calibration.tokens), self.plan.recipe
        grid = self.plan.grids.get(self.plan.arch.tensors.embedding.removesuffix(".weight"))
        embedded = self.decoder.embed(tokens)
        states = {} if self.beside is None else {"reference": embedded[: recipe.corrected_windows].clone()}
        if grid is not None and not is_tied(
            self.plan.checkpoint.config
        ):  # a tied one is rounded as the head, at the end
            embedded = embed_rounded(self.decoder, tokens, grid, recipe.scale_search)
        return {"hidden": embedded, **states}

    def step(self, index: int, states: States) -> LayerDone:
        """A layer, or the tables after the last one."""
        return self.quantized(index, states) if index < self.plan.layers else self._tables(states["hidden"])

    def _tables(self, hidden: torch.Tensor) -> LayerDone:
        """hidden: what comes out of the last layer, quantized."""
        plan, done = self.plan, list[Rounded]()
        scores = head_name(self.decoder.weights, plan.arch).removesuffix(".weight")
        for table in plan.rounded_tables:
            grid = plan.grids[table.name]
            assert grid is not None
            stats = head_statistics(self.decoder, hidden) if table.name == scores else None
            weight = self.decoder.weights.read(f"{table.name}.weight")
            done.append(round_table(table.name, weight, grid, plan.recipe, stats))
            self.progress.advance(INSIDE / len(plan.rounded_tables), table.name)
        return LayerDone(partial(layer_files.write, linears=done), "embedding and head")

    def quantized(self, index: int, states: States) -> LayerDone:
        """The linears of a layer. What enters it is replaced by what comes out of it, quantized."""
        plan, done = self.plan, list[Rounded]()
        prefix = plan.arch.layer_prefix(index)
        needed = None if self.guidance is None else self.guidance.layer(index)
        with ExitStack() as filled:
            layer_pass, reference = LayerPass(filled.enter_context(self.decoder.layer(index)), states["hidden"]), None
            if self.beside is not None:
                reference = LayerPass(filled.enter_context(self.beside.layer(index)), states["reference"])
            read = self.decoder.weights.read
            for rounded in quantize_layer(layer_pass, reference, needed, prefix, read, plan.recipe, plan.grids):
                done.append(rounded)
                self.progress.advance(INSIDE / len(plan.arch.layer.linears), rounded.report.name)
                if rounded.report.remark:
                    self.progress.note(rounded.report.remark)
        if not bool(torch.isfinite(states["hidden"].sum(dtype=torch.float32))):
            raise NumericError.overflow(f"the output of {prefix.rstrip('.')} holds")
        worst = max((rounded.report.relative_loss for rounded in done), default=0.0)
        return LayerDone(partial(layer_files.write, linears=done), f"worst relative loss {worst:.2e}")

"""Calibration tokens on their way through one decoder layer, stage by stage.

Whoever walks the stages sees what the linears of each read, and may change their weights before the outputs of that
stage are computed. It knows nothing of statistics or rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch

from r1quant.arch.tables import Stage
from r1quant.core.limits import KEPT_LIMIT
from r1quant.engine.blocks import DecoderLayer
from r1quant.engine.forward import chunked

Chunks = Callable[[], Iterable[torch.Tensor]]


@dataclass(frozen=True, eq=False)
class LayerPass:
    """A layer and the tokens that pass through it: hidden [windows, seq_len, width], replaced by what comes out."""

    layer: DecoderLayer
    hidden: torch.Tensor

    def chunks(self) -> Iterator[torch.Tensor]:
        return chunked(self.hidden)

    def stages(self) -> Iterator[tuple[Stage, Chunks]]:
        """Each stage and what its linears read. The outputs of a stage, with the weights that are then in place, are
        computed when the next one is asked for."""
        inputs: Chunks = self.chunks
        for stage in self.layer.stages:
            inputs = self._inputs(stage, inputs)
            yield stage, inputs
            if stage.residual:
                self._add(stage, inputs)

    def _inputs(self, stage: Stage, before: Chunks) -> Chunks:
        """Kept if they are small; before: what the linears of the stage before read."""
        layer, width = self.layer, self.layer.weight(stage.linears[0]).shape[1]

        def chunks() -> Iterable[torch.Tensor]:
            source = self.chunks() if stage.reads_hidden else before()
            return (layer.input_of(stage, chunk.to(layer.device)) for chunk in source)

        if self.hidden.shape[:2].numel() * width * self.hidden.element_size() > KEPT_LIMIT:
            return chunks
        held = [chunk.to(self.hidden.device) for chunk in chunks()]
        return lambda: held

    def _add(self, stage: Stage, inputs: Chunks) -> None:
        """The outputs of a stage, to the hidden states."""
        for chunk, x in zip(self.chunks(), inputs(), strict=True):
            chunk += self.layer.update_of(stage, x.to(self.layer.device)).to(chunk.device)

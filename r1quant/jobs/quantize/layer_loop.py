"""The loop over decoder layers that goes on where an earlier start was interrupted.

Before the file of a layer is written, the activations that enter the next one are; so whatever file is the last, its
successor can start. It does not know what is made of a layer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from r1quant.core.formatting import seconds_text
from r1quant.jobs.quantize.activations import load, save
from r1quant.progress import Progress
from r1quant.storage.rundir import RunDir

States = Mapping[str, torch.Tensor]  # the activations that enter a layer, by name


@dataclass(frozen=True)
class LayerDone:
    """A layer that is finished but for its file: `write` writes that, atomically; `remark` is for the progress line."""

    write: Callable[[Path], None]
    remark: str = ""


@dataclass(frozen=True)
class LayerLoop:
    """What is done with the layers of a model, one after the other.

    task     what the progress line calls it
    start    makes the states that enter the first layer; None if no layer depends on the one before
    step     makes something of the layer with this index, and replaces its states by those that enter the next one
    inside   the share of a layer's progress that `step` counts itself
    """

    task: str
    layers: int
    start: Callable[[], States] | None
    step: Callable[[int, States], LayerDone]
    inside: float = 0.0

    def run(self, folder: RunDir, progress: Progress) -> None:
        """Writes the layer files that are missing in a run directory."""
        first = self._first(folder)
        if first:
            progress.note(f"resuming after layer {first} of {self.layers}")
        states = self._states(folder, first)
        progress.begin(self.task, self.layers)
        progress.advance(first)
        for index in range(first, self.layers):
            begun = time.monotonic()
            done = self.step(index, states)
            if states and index + 1 < self.layers:
                save(folder.layer_input(index + 1), states)
            done.write(folder.layer_file(index))
            folder.forget_layer_inputs(keep=index + 1)
            line = f"layer {index + 1}/{self.layers} in {seconds_text(time.monotonic() - begun)}"
            progress.advance(1 - self.inside, f"{line}, {done.remark}" if done.remark else line)

    def _first(self, folder: RunDir) -> int:
        """The layer to go on with. One that is finished is made again if the activations after it are not there."""
        first = folder.done(self.layers)
        while self.start is not None and 0 < first < self.layers and not folder.layer_input(first).exists():
            first -= 1
        return first

    def _states(self, folder: RunDir, first: int) -> States:
        if self.start is None or first == self.layers:
            return {}
        return load(folder.layer_input(first)) if first else self.start()

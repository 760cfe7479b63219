"""The sensitivity pass with what it needs to go on after a crash, kept so that it is made once for a model and text.

Forward: the activations that enter each layer, on the disk; of deep models with much text only those of every few
layers, between which they are made again. Backward: from the last layer to the first, a finished file for each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from r1quant.core.limits import BOUNDARY_BYTES
from r1quant.engine.forward import Decoder, chunked
from r1quant.engine.sensitivity import Sensitivity, backward, head_gradient
from r1quant.engine.table_loss import EmbeddingSensitivity, embedding_sensitivity
from r1quant.errors import NumericError
from r1quant.jobs.quantize.activations import load, save
from r1quant.jobs.quantize.calibration import CalibrationRun
from r1quant.progress import Progress
from r1quant.recipe import Recipe
from r1quant.storage.cache import Fingerprint, cache_folder, entry
from r1quant.storage.rundir import RunDir

SEED = 1
EMBEDDING = "embedding.safetensors"
# What is measured; part of the fingerprint.
KIND = "covariances by norms, tokens by the inverse distribution, the embedding"


@dataclass(frozen=True)
class Sensitivities:
    """Finished passes, a folder for each, in it a file for each layer and one for the embedding."""

    folders: tuple[Path, ...]

    def layer(self, index: int) -> dict[str, Sensitivity]:
        """The mean of all passes, by the names of the linears within the layer."""
        first, *others = (load(folder / f"layer-{index:05d}.safetensors") for folder in self.folders)
        totals = {name: sum(other[name] for other in others) + tensor for name, tensor in first.items()}
        mean = {name: total / len(self.folders) for name, total in totals.items()}
        names = [name.removesuffix(".weights") for name in mean if name.endswith(".weights")]
        return {name: Sensitivity(mean[f"{name}.weights"], _numbered(mean, f"{name}.covariance.")) for name in names}

    def embedding(self) -> EmbeddingSensitivity:
        """The mean of all passes."""
        found = [load(folder / EMBEDDING) for folder in self.folders]
        rows, columns = (sum((one[name] for one in found), torch.zeros(())) for name in ("rows", "columns"))
        return EmbeddingSensitivity(rows / len(found), columns / len(found))


def guidance_of(decoder: Decoder, calibration: CalibrationRun, recipe: Recipe, progress: Progress) -> Sensitivities:
    """The passes that a recipe asks for."""
    return measured(decoder, calibration, cache_folder(), progress, recipe.draws, recipe.guided_windows)


def measured(
    decoder: Decoder,
    calibration: CalibrationRun,
    cache: Path,
    progress: Progress,
    draws: int = 1,
    windows: int | None = None,
) -> Sensitivities:
    """The passes over a calibration text; from the folder `cache` if they were made before.

    draws    how often a next token is drawn at every position, with a pass for each
    windows  how many windows they go over, the first ones; None for all

    Raises NumericError if the model overflows on the text.
    """
    cache.mkdir(parents=True, exist_ok=True)
    tokens = calibration.tokens[:windows]
    fingerprint = {**calibration.fingerprint, "kind": KIND, "windows": str(len(tokens))}
    folders = []
    for draw in range(draws):
        folder = entry(cache, "sensitivity", {**fingerprint, "draw": str(draw)})
        _measure(_Pass(decoder, tokens, SEED + draw, progress), folder, {**fingerprint, "draw": str(draw)})
        folders.append(folder)
    return Sensitivities(tuple(folders))


def _measure(job: _Pass, folder: Path, fingerprint: Fingerprint) -> None:
    """Makes what is missing of one pass."""

    def waiting() -> None:
        job.progress.note("another process makes the sensitivity pass of this model and text: waiting for it")

    with RunDir(folder, waiting) as run, torch.no_grad():
        run.claim(fingerprint)
        if any(not run.layer_file(index).exists() for index in range(len(job.decoder))):
            job.run(run)
        run.forget_layer_inputs(None)
        for path in folder.glob("gradient-*"):
            path.unlink()


def _gradient(run: RunDir, index: int) -> Path:
    """The gradient at the input of a layer."""
    return run.folder / f"gradient-{index:05d}.safetensors"


def _numbered(tensors: Mapping[str, torch.Tensor], prefix: str) -> tuple[torch.Tensor, ...]:
    count = sum(name.startswith(prefix) for name in tensors)
    return tuple(tensors[f"{prefix}{number}"] for number in range(count))


@dataclass(frozen=True, eq=False)
class _Pass:
    """One pass over tokens int64 [windows, seq_len]."""

    decoder: Decoder
    tokens: npt.NDArray[np.int64]
    seed: int
    progress: Progress

    def run(self, run: RunDir) -> None:
        """Whatever is on the disk already is not made again."""
        layers = len(self.decoder)
        last = next(i for i in range(layers - 1, -1, -1) if not run.layer_file(i).exists())
        self.progress.begin("sensitivity", 3 * layers)
        if not _gradient(run, last + 1).exists():
            states = self._states(run, layers, self._stride())
            save(_gradient(run, layers), {"gradient": head_gradient(self.decoder, states, self.seed)})
        gradient = load(_gradient(run, last + 1))["gradient"]
        for index in range(last, -1, -1):
            states = self._states(run, index, 1)
            with self.decoder.layer(index) as layer:
                sensitivities = backward(layer, states, gradient, lambda share: self.progress.advance(2 * share))
            if not bool(torch.isfinite(gradient.sum(dtype=torch.float32))):
                raise NumericError.overflow(f"the gradient at layer {index} holds")
            save(_gradient(run, index), {"gradient": gradient})
            if index == 0:
                self._write_embedding(run.folder / EMBEDDING, gradient)
            self._write(run.layer_file(index), sensitivities)
            _gradient(run, index + 1).unlink()
            run.layer_input(index + 1).unlink(missing_ok=True)

    def _write(self, path: Path, sensitivities: Mapping[str, Sensitivity]) -> None:
        arrays = {f"{name}.weights": sensitivity.weights for name, sensitivity in sensitivities.items()}
        for name, sensitivity in sensitivities.items():
            arrays |= {f"{name}.covariance.{i}": block for i, block in enumerate(sensitivity.covariance)}
        save(path, arrays)

    def _write_embedding(self, path: Path, gradient: torch.Tensor) -> None:
        vocabulary = int(self.decoder.weights.config["vocab_size"])
        found = embedding_sensitivity(torch.from_numpy(self.tokens), gradient, vocabulary)
        save(path, {"rows": found.rows, "columns": found.columns})

    def _stride(self) -> int:
        """Of how many layers the inputs of one are kept."""
        width = int(self.decoder.weights.config["hidden_size"])
        nbytes = self.tokens.size * width * torch.empty(0, dtype=self.decoder.dtype).element_size()
        return max(1, math.ceil(nbytes * len(self.decoder) / BOUNDARY_BYTES))

    def _states(self, run: RunDir, index: int, stride: int) -> torch.Tensor:
        """What enters a layer, from the nearest layer before it whose input is on the disk; of those on the way the
        inputs of every stride-th are kept."""
        start = next((i for i in range(index, -1, -1) if run.layer_input(i).exists()), None)
        if start is None:
            start, hidden = 0, self.decoder.embed(torch.from_numpy(self.tokens))
        else:
            hidden = load(run.layer_input(start))["hidden"]
        for i in range(start, index):
            with self.decoder.layer(i) as layer:
                for chunk in chunked(hidden):
                    chunk.copy_(layer(chunk.to(self.decoder.device)))
            if not bool(torch.isfinite(hidden.sum(dtype=torch.float32))):
                raise NumericError.overflow(f"the output of layer {i} holds")
            if (i + 1) % stride == 0 or i + 1 == index:
                save(run.layer_input(i + 1), {"hidden": hidden})
            self.progress.advance(1 if stride > 1 or index == len(self.decoder) else 0)
        return hidden

"""The sensitivity pass with what it needs to go on after a crash, kept so that it is made once for a model and text.

Forward: the activations that enter each layer, on the disk; of deep models with much text only those of every few
layers, between which they are made again. Backward: from the last layer to the first, one finished part each.
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
from r1quant.errors import NumericError
from r1quant.jobs.quantize.activations import load, save
from r1quant.progress import Progress
from r1quant.recipe import Recipe
from r1quant.storage.cache import cache_folder, key
from r1quant.storage.rundir import RunDir

SEED = 1
KIND = "covariances by norms, tokens by the inverse distribution"  # what is kept; another one is another pass


@dataclass(frozen=True)
class Sensitivities:
    """Finished passes, a folder for each, in it a file for each layer."""

    folders: tuple[Path, ...]

    def layer(self, index: int) -> dict[str, Sensitivity]:
        """The mean of all passes, by the names of the linears within the layer."""
        passes = [load(_part(folder, index)) for folder in self.folders]
        found = {name: sum(other[name] for other in passes[1:]) + first for name, first in passes[0].items()}
        mean = {name: total / len(passes) for name, total in found.items()}
        names = [name.removesuffix(".weights") for name in mean if name.endswith(".weights")]
        return {name: Sensitivity(mean[f"{name}.weights"], _numbered(mean, f"{name}.covariance.")) for name in names}


def guidance_of(
    decoder: Decoder, tokens: npt.NDArray[np.int64], seen: Mapping[str, str], recipe: Recipe, progress: Progress
) -> Sensitivities:
    """The passes that a recipe asks for; tokens: int64 [windows, seq_len]; seen: all else that decides them."""
    return measured(decoder, tokens, cache_folder(), seen, progress, recipe.draws, recipe.guided_windows)


def measured(
    decoder: Decoder,
    tokens: npt.NDArray[np.int64],
    cache: Path,
    identity: Mapping[str, str],
    progress: Progress,
    draws: int = 1,
    windows: int | None = None,
) -> Sensitivities:
    """The passes over tokens int64 [windows, seq_len]; from the cache where they were made before.

    identity is all else that decides them; draws, how often a next token is drawn at every position, with a pass for
    each; windows, how many they go over, the first ones; None for all.
    Raises NumericError where the model overflows on the text.
    """
    cache.mkdir(parents=True, exist_ok=True)
    made = []
    chosen = tokens[:windows]
    basis = {**identity, "kind": KIND} | ({"windows": str(len(chosen))} if len(chosen) < len(tokens) else {})
    for draw in range(draws):
        stated = basis | ({"draw": str(draw)} if draw else {})
        made.append(_measured(decoder, chosen, cache, stated, progress, SEED + draw))
    return Sensitivities(tuple(made))


def _measured(
    decoder: Decoder,
    tokens: npt.NDArray[np.int64],
    cache: Path,
    identity: Mapping[str, str],
    progress: Progress,
    seed: int,
) -> Path:
    """The folder of one pass."""
    folder = cache / f"sensitivity-{key(identity)}"

    def waiting() -> None:
        progress.note("another process makes the sensitivity pass of this model and text: waiting for it")

    with RunDir(folder, waiting) as run, torch.no_grad():
        run.claim(identity)
        if any(not _part(folder, index).exists() for index in range(len(decoder))):
            _Pass(decoder, tokens, run, progress, seed).run()
        run.forget_boundaries(None)
        for path in folder.glob("gradient-*"):
            path.unlink()
    return folder


def _part(folder: Path, index: int) -> Path:
    return folder / f"layer-{index:05d}.safetensors"


def _numbered(found: Mapping[str, torch.Tensor], prefix: str) -> tuple[torch.Tensor, ...]:
    count = sum(name.startswith(prefix) for name in found)
    return tuple(found[f"{prefix}{number}"] for number in range(count))


@dataclass(frozen=True, eq=False)
class _Pass:
    decoder: Decoder
    tokens: npt.NDArray[np.int64]
    run_dir: RunDir
    progress: Progress
    seed: int

    def run(self) -> None:
        """Whatever is on the disk already is not made again."""
        layers = len(self.decoder)
        last = next(i for i in range(layers - 1, -1, -1) if not _part(self.folder, i).exists())
        self.progress.begin("sensitivity", 3 * layers)
        if not self._gradient(last + 1).exists():
            states = self._states(layers, self._stride())
            save(self._gradient(layers), {"gradient": head_gradient(self.decoder, states, self.seed)})
        gradient = load(self._gradient(last + 1))["gradient"]
        for index in range(last, -1, -1):
            states = self._states(index, 1)
            with self.decoder.layer(index) as layer:
                found = backward(layer, states, gradient, lambda share: self.progress.advance(2 * share))
            if not bool(torch.isfinite(gradient.sum(dtype=torch.float32))):
                raise NumericError.overflow(f"the gradient at layer {index} holds")
            save(self._gradient(index), {"gradient": gradient})
            self._write(index, found)
            self._gradient(index + 1).unlink()
            self.run_dir.boundary(index + 1).unlink(missing_ok=True)

    def _write(self, index: int, found: Mapping[str, Sensitivity]) -> None:
        arrays = {f"{name}.weights": sensitivity.weights for name, sensitivity in found.items()}
        for name, sensitivity in found.items():
            arrays |= {f"{name}.covariance.{i}": part for i, part in enumerate(sensitivity.covariance)}
        save(_part(self.folder, index), arrays)

    @property
    def folder(self) -> Path:
        return self.run_dir.folder

    def _stride(self) -> int:
        """Of how many layers one boundary is kept."""
        width = int(self.decoder.weights.config["hidden_size"])
        each = self.tokens.size * width * torch.empty(0, dtype=self.decoder.dtype).element_size()
        return max(1, math.ceil(each * len(self.decoder) / BOUNDARY_BYTES))

    def _states(self, index: int, stride: int) -> torch.Tensor:
        """What enters a layer, from the nearest boundary before it; of those on the way every stride-th is kept."""
        start = next((i for i in range(index, -1, -1) if self.run_dir.boundary(i).exists()), None)
        if start is None:
            start, hidden = 0, self.decoder.embed(torch.from_numpy(self.tokens))
        else:
            hidden = load(self.run_dir.boundary(start))["hidden"]
        for i in range(start, index):
            with self.decoder.layer(i) as layer:
                for chunk in chunked(hidden):
                    chunk.copy_(layer(chunk.to(self.decoder.device)))
            if not bool(torch.isfinite(hidden.sum(dtype=torch.float32))):
                raise NumericError.overflow(f"the output of layer {i} holds")
            if (i + 1) % stride == 0 or i + 1 == index:
                save(self.run_dir.boundary(i + 1), {"hidden": hidden})
            self.progress.advance(1 if stride > 1 or index == len(self.decoder) else 0)
        return hidden

    def _gradient(self, index: int) -> Path:
        """The gradient at the input of layer `index`."""
        return self.folder / f"gradient-{index:05d}.safetensors"

"""A calibration run: a text that the float model reads, if and in what precision it does, and the fingerprint of it.

Passes over the text are kept in the cache under the key of that fingerprint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from r1quant.checkpoint.artifact import Artifact
from r1quant.checkpoint.resolve import is_embedded
from r1quant.checkpoint.safetensors import Checkpoint
from r1quant.checkpoint.tokenizer import Tokenizer
from r1quant.data import texts, windows
from r1quant.data.windows import Calibration
from r1quant.formats import table
from r1quant.jobs.identity import identity
from r1quant.planning.plan import Plan
from r1quant.progress import Progress
from r1quant.records.quantization import CalibrationText
from r1quant.storage import provenance
from r1quant.storage.cache import Fingerprint, cache_folder

if TYPE_CHECKING:
    from r1quant.engine.forward import Decoder


@dataclass(frozen=True, eq=False)
class CalibrationRun:
    """A text and the float model that reads it.

    device       cpu or cuda
    dtype        in which the activations are computed, as torch names it
    fingerprint  all that decides the activations: weights, tokens, transforms, device, dtype, versions, threads
    """

    text: Calibration
    device: str
    dtype: str
    fingerprint: Fingerprint

    @property
    def tokens(self) -> npt.NDArray[np.int64]:
        """[windows, seq_len]"""
        return self.text.tokens

    @property
    def compute(self) -> dict[str, str]:
        return {"device": self.device, "dtype": self.dtype}

    @property
    def text_record(self) -> CalibrationText:
        """What a record says of the text."""
        return CalibrationText(
            source=self.text.source,
            sha256=self.text.sha256,
            samples=self.text.windows,
            requested_samples=self.text.requested,
            seq_len=self.tokens.shape[1],
            documents=self.text.documents,
        )


def calibration_run(
    model: Artifact,
    text: Calibration,
    device: str,
    dtype: str,
    progress: Progress,
    transforms: Mapping[str, str] | None = None,
) -> CalibrationRun:
    """A text that a model is to read.

    device, dtype  as a recipe names them: auto, cpu, cuda:1; auto, bfloat16
    transforms     what was done to the weights since they were read, which changes no logits

    Raises RecipeError if there is no such device.
    """
    from r1quant.engine.forward import pick_device, pick_dtype  # with torch, whose version and threads are recorded

    place = pick_device(device)
    compute = {"device": place.type, "dtype": str(pick_dtype(dtype, place)).removeprefix("torch.")}
    fingerprint = {
        "model": identity(model, cache_folder(), progress),
        "text": text.sha256,
        **(transforms or {}),
        **compute,
        **provenance.environment(),
    }
    return CalibrationRun(text, compute["device"], compute["dtype"], fingerprint)


def calibration_of(plan: Plan, progress: Progress) -> CalibrationRun:
    """The calibration run that a plan asks for, in the basis that its recipe rotates into, with its factors.

    Raises CalibrationError if the text cannot be used, RecipeError if the device is not there.
    """
    recipe = plan.recipe
    transforms = {} if recipe.rotate is None else {"rotate": recipe.rotate, "seed": str(recipe.seed)}
    if recipe.factors is not None:
        transforms |= {"factors": recipe.factors, "smooth": str(recipe.smooth), "grid": str(recipe.value_grid)}
    text, model = _text(plan, progress), table.artifact(plan.checkpoint)
    return calibration_run(model, text, recipe.device, recipe.dtype, progress, transforms)


def default_text(model: Checkpoint | Artifact) -> str | None:
    """The text to calibrate and measure with if none is named: the embedded model knows only its own problems."""
    return texts.CHAINS if is_embedded(model.source, model.folder) else None


def decoder_of(plan: Plan, seq_len: int) -> Decoder:
    """The layers of a plan's float model. Raises RecipeError if the device is not there."""
    from r1quant.engine.forward import Decoder, pick_device, pick_dtype

    device = pick_device(plan.recipe.device)
    return Decoder(plan.checkpoint.unrounded(), plan.arch, device, pick_dtype(plan.recipe.dtype, device), seq_len)


def _text(plan: Plan, progress: Progress) -> Calibration:
    """The windows that the recipe names, and after them those that the model writes."""
    text = _named_text(plan, progress)
    if not plan.recipe.continuations:
        return text
    from r1quant.jobs.generate.selftext import continued

    return continued(plan.checkpoint, plan.recipe, text, progress)


def _named_text(plan: Plan, progress: Progress) -> Calibration:
    checkpoint, recipe = plan.checkpoint, plan.recipe
    if recipe.calib == texts.SELF:
        from r1quant.jobs.generate.selftext import own_text

        return own_text(checkpoint, recipe, progress)
    tokenizer, vocabulary = Tokenizer.of(checkpoint), int(checkpoint.config["vocab_size"])
    spec = recipe.calib or default_text(checkpoint)
    text = windows.load(spec, tokenizer, recipe.samples, recipe.seq_len, recipe.seed, vocabulary=vocabulary)
    return text.spread if text.documents == 1 else text  # documents come shuffled

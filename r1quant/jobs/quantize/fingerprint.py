"""A float model that sees a text, and all that decides what it does with it.

Passes over the text are kept in the cache under the hash of the latter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from r1quant.checkpoint.artifact import Artifact
from r1quant.data.windows import Calibration
from r1quant.jobs.identity import identity
from r1quant.planning.planner import Plan
from r1quant.progress import Progress
from r1quant.storage import provenance
from r1quant.storage.cache import cache_folder

if TYPE_CHECKING:
    from r1quant.engine.forward import Decoder


def precision(device: str, dtype: str) -> dict[str, str]:
    """Where and in what precision the text will run. Raises RecipeError for a device that is not here."""
    from r1quant.engine.forward import pick_device, pick_dtype

    found = pick_device(device)
    return {"device": found.type, "dtype": str(pick_dtype(dtype, found)).removeprefix("torch.")}


def fingerprint(
    model: Artifact,
    text: Calibration,
    compute: Mapping[str, str],
    progress: Progress,
    basis: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """basis: what was done to the model's weights since they were read, that changes no logits."""
    import torch  # noqa: F401  (its version and thread count are part of the environment)

    return {
        "model": identity(model, cache_folder(), progress),
        "text": text.sha256,
        **(basis or {}),
        **compute,
        **provenance.environment(),
    }


def decoder_of(made: Plan, seq_len: int) -> Decoder:
    """The layers of the plan's float model. Raises RecipeError for a device that is not here."""
    from r1quant.engine.forward import Decoder, pick_device, pick_dtype

    device = pick_device(made.recipe.device)
    return Decoder(made.checkpoint.unrounded(), made.arch, device, pick_dtype(made.recipe.dtype, device), seq_len)

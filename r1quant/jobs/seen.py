"""All that decides what a float model does with a text: passes over it are kept in the cache under its hash."""

from __future__ import annotations

from collections.abc import Mapping

from r1quant import provenance
from r1quant.artifact import Artifact
from r1quant.calibration import Calibration
from r1quant.jobs.identity import identity
from r1quant.jobs.samples import cache_folder
from r1quant.progress import Progress


def precision(device: str, dtype: str) -> dict[str, str]:
    """Where and in what precision the text will run. Raises RecipeError for a device that is not here."""
    from r1quant.forward import pick_device, pick_dtype

    found = pick_device(device)
    return {"device": found.type, "dtype": str(pick_dtype(dtype, found)).removeprefix("torch.")}


def deciding(
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

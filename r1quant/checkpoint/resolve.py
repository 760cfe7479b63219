"""From what a user names to a checkpoint: a folder, a GGUF file, the embedded tiny-r1 or a model on the Hub.

What exists on the local disk is always meant first. It does not know what is in a checkpoint.
"""

from __future__ import annotations

import re
from fnmatch import fnmatch
from importlib import resources
from pathlib import Path

from r1quant.checkpoint.safetensors import PICKLES, Checkpoint, open_folder
from r1quant.errors import CheckpointError

EMBEDDED = "tiny-r1"
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
FILES = (".gguf", ".safetensors", ".json")


def open_model(model: str | Path, partial: bool = False) -> Checkpoint:
    """Opens what a user named, which `source` of the checkpoint repeats.

    partial  whether a GGUF file may lack tensor data, as open_gguf has it

    Raises CheckpointError if the model is unknown.
    """
    source, path = str(model), Path(model)
    is_folder, exists = _look(path)
    if is_folder:
        return open_folder(path, source)
    pickled = any(fnmatch(path.name.lower(), pattern) for pattern in PICKLES)
    if exists:
        if path.suffix.lower() == ".gguf":
            from r1quant.checkpoint.gguf.source import open_gguf

            return open_gguf(path, source, partial)
        if pickled:
            raise pickle_refused(path)
        if path.suffix.lower() == ".safetensors":
            raise CheckpointError(f"{source} is one file of a checkpoint", f"name its folder: {path.parent}")
        raise CheckpointError(f"{source} is not a model file", "name a folder with safetensors, or a GGUF file")
    if source == EMBEDDED:
        return open_folder(embedded_folder(), source)
    if named_on_hub(model):
        from r1quant.checkpoint.hub import fetch

        return open_folder(fetch(source), source)
    raise CheckpointError(
        f"there is no model {source!r}",
        f"name a folder with safetensors, a GGUF file, a model on the Hub as owner/name, or {EMBEDDED}",
    )


def named_on_hub(model: str | Path) -> bool:
    """Whether a name can only be that of a model on the Hub: nothing local is called so."""
    source = str(model)
    pickled = any(fnmatch(source.lower(), pattern) for pattern in PICKLES)
    called = isinstance(model, str) and HUB_ID.fullmatch(source) and not source.lower().endswith(FILES)
    return bool(called) and not pickled and not _look(Path(source))[1]


def embedded_folder() -> Path:
    """Where the model lies that ships inside the package."""
    return Path(str(resources.files("r1quant") / "tinyr1" / "model"))


def is_embedded(source: str, folder: Path) -> bool:
    """Whether a model, by what the user called it and where it lies, is the one inside the package."""
    return source == EMBEDDED and folder == embedded_folder()


def pickle_refused(path: Path) -> CheckpointError:
    """The refusal of a pickle file; of a folder of them, safetensors.py says the same."""
    return CheckpointError(
        f"{path} is a pickle checkpoint, which can run code when it is opened",
        "convert it to safetensors first: transformers' save_pretrained(..., safe_serialization=True) does",
    )


def _look(path: Path) -> tuple[bool, bool]:
    """Whether the path is a folder, and whether it exists at all. A name that no file system holds is not there."""
    try:
        return path.is_dir(), path.exists()
    except (OSError, ValueError):
        return False, False

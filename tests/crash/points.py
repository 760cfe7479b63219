"""Moments of a quantization at which something can be made to happen, each named after what is true then."""

from __future__ import annotations

import errno
import importlib
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Point:
    """The nth call of a function, written `module:name` or `module:Class.name`; just before it, or just after."""

    where: str
    nth: int = 1
    after: bool = False


# The model has three layers of four stages; inputs and layers are written in the order i1 l0 i2 l1 l2.
POINTS = {
    "the text is not read yet": Point("r1quant.jobs.quantize.run:calibration_of"),
    "half of the weights are hashed": Point("r1quant.checkpoint.safetensors:finite", 15),
    "the run directory is not claimed yet": Point("r1quant.storage.rundir:RunDir.claim"),
    "the run directory is claimed": Point("r1quant.storage.rundir:RunDir.claim", after=True),
    "the first layer is half done": Point("r1quant.engine.methods.gptq:quantize", 3),
    "the second layer's input is written, the first layer is not": Point(
        "r1quant.jobs.quantize.layer_loop:save", after=True
    ),
    "the first layer is written": Point("r1quant.jobs.quantize.layer_files:write", after=True),
    "a layer in the middle is being solved": Point("r1quant.engine.methods.gptq:round_columns", 7),
    "the second layer is written, an old input remains": Point("r1quant.storage.rundir:RunDir.forget_layer_inputs", 2),
    "the last layer is half done": Point("r1quant.engine.methods.gptq:quantize", 11),
    "all layers are done": Point("r1quant.jobs.quantize.finalize:build"),
    "a shard is half written": Point("r1quant.jobs.checkpoint_writer:Contents._encoded", 30),
    "the first shard is written": Point("r1quant.jobs.checkpoint_writer:write", after=True),
    "all shards are written": Point("r1quant.jobs.quantize.finalize:with_key"),
    "only the record is missing": Point("r1quant.jobs.quantize.finalize:_record", after=True),
    "the output is complete, but not in its place": Point("r1quant.storage.atomic:rename_folder"),
    "the output is in its place": Point("r1quant.storage.atomic:rename_folder", after=True),
    "the run directory is half removed": Point("pathlib:Path.unlink", 5),
}


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fill() -> None:
    """Leaves no free byte on the disk of the current folder."""
    with Path("ballast").open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while file.write(b"\0" * size):
                    pass
            except OSError:
                continue


def occupy() -> None:
    """Somebody else puts something at OUT."""
    Path("out").mkdir()
    Path("out", "notes.txt").write_text("mine")


def another_thread() -> None:
    """One more for torch than the command was begun with."""
    import torch

    torch.set_num_threads(torch.get_num_threads() + 1)


ACTIONS: dict[str, Callable[[], None]] = {a.__name__: a for a in (kill, interrupt, full, fill, occupy, another_thread)}


def arm(point: Point, action: Callable[[], None]) -> None:
    """Makes the action happen at the point, once."""
    module_name, _, path = point.where.partition(":")
    owner: Any = importlib.import_module(module_name)
    *outer, name = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    original, calls = getattr(owner, name), 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == point.nth and not point.after:
            action()
        result = original(*args, **kwargs)
        if calls == point.nth and point.after:
            action()
        return result

    setattr(owner, name, wrapped)

"""Where a result goes: what it is called, whether its place is free, and whether the disk holds it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from r1quant.checkpoint.safetensors import Checkpoint
from r1quant.core.formatting import bytes_text
from r1quant.core.grid import UNIFORM
from r1quant.core.json import JsonObject
from r1quant.errors import OutOfSpaceError, R1QuantError, ResumeError
from r1quant.planning.estimates import Estimate
from r1quant.planning.layout import RECORD
from r1quant.planning.linears import PlanProblem
from r1quant.recipe import FLOAT, Recipe
from r1quant.registry import METHODS
from r1quant.storage.cache import cache_folder
from r1quant.storage.jsonfile import read_object
from r1quant.storage.rundir import folder_for


def default_out(checkpoint: Checkpoint, recipe: Recipe, folder: Path) -> Path:
    """Where the result goes if nobody says: into `folder`, named after what it is."""
    group = "" if recipe.group_size == -1 else f"g{recipe.group_size}"
    kind = "" if recipe.symmetric else "-asym"
    grid = "" if recipe.grid == UNIFORM else f"-{recipe.grid}"
    method = "" if METHODS[recipe.method].usual else f"-{recipe.method}"
    stem = checkpoint.name.removesuffix(".gguf")
    if recipe.typed:
        return folder / f"{stem}-gguf-{recipe.width}{method}"
    tables = "".join(f"-{table}{bits}" for table, bits in recipe.table_bits.items() if bits != FLOAT)
    return folder / f"{stem}-{recipe.format}-{recipe.width}{group}{kind}{grid}{tables}{method}"


def finished_record(out: Path) -> JsonObject | None:
    """The record of a result that is at `out` already; None if the place is free: absent, or an empty folder.

    Raises ResumeError if something else is there.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    record = read_object(out / RECORD)
    if not record:
        raise ResumeError(f"{out} exists and is not empty", "choose another --out, or delete it first")
    return record


def is_complete(out: Path) -> bool:
    """Whether a finished result of any kind is at `out`."""
    try:
        return finished_record(out) is not None
    except ResumeError:
        return False


def place_problems(out: Path, estimate: Estimate) -> list[PlanProblem]:
    """Why the result cannot be written to `out`. What a begun run has written already needs no more space."""
    try:
        if finished_record(out) is not None:
            return []
    except R1QuantError as error:
        return [PlanProblem(error.message, error.hint, type(error))]
    parent, run = out.parent, folder_for(out)
    if not parent.is_dir():
        return [PlanProblem(f"the folder {parent} does not exist", "create it, or choose another --out")]
    if not os.access(parent, os.W_OK):
        return [PlanProblem(f"the folder {parent} is not writable", "choose another --out")]
    written = sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
    needed, free = estimate.output_bytes + estimate.run_bytes - written, shutil.disk_usage(parent).free
    if needed <= free:
        return []
    return [
        PlanProblem(
            f"not enough disk space in {parent}: {bytes_text(needed)} needed, {bytes_text(free)} free",
            "free some space, or choose another --out",
            OutOfSpaceError,
        )
    ]


def cache_warnings(estimate: Estimate) -> list[str]:
    """Whether the cache may lack space. It may hold already what is needed, which is not known before the weights are
    hashed, so this stops nothing."""
    cache = cache_folder()
    existing = next((folder for folder in (cache, *cache.absolute().parents) if folder.is_dir()), None)
    if existing is None or estimate.cache_bytes <= (free := shutil.disk_usage(existing).free):
        return []
    needed = f"{bytes_text(estimate.cache_bytes)}, and {bytes_text(free)} are free"
    return [f"the cache {cache} may need {needed}: set R1QUANT_CACHE to a folder on another disk"]

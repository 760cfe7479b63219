"""Which rows are run on which models and grids, and the files that they are all given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import smollm2

from peers.rows import Given, Row
from peers.texts import Text
from r1quant.checkpoint.resolve import open_model
from r1quant.checkpoint.safetensors import Checkpoint
from r1quant.checkpoint.tokenizer import Tokenizer
from r1quant.data import windows as calibration

TITLES = {"smollm2": "SmolLM2-135M-Instruct"}


@dataclass(frozen=True)
class Order:
    """What is asked of every row.

    models   smollm2, or what `r1quant.open_model` takes
    grids    bits and group size
    text     calibration, of which `samples` windows of `seq_len` tokens are used
    layers   only so many decoder layers; None for all
    """

    models: tuple[str, ...]
    grids: tuple[tuple[int, int], ...]
    text: Text
    samples: int
    seq_len: int
    layers: int | None
    work: Path


@dataclass(frozen=True)
class Task:
    """A row on one model and grid.

    given  what it is timed on
    small  one layer and one window, to be run before
    out    where its result goes
    entry  what the record says of it beforehand
    """

    row: Row
    given: Given
    small: Given
    out: Path
    entry: Mapping[str, Any]

    def beside(self, suffix: str) -> Path:
        """A file or folder that belongs to the result."""
        return self.out.with_name(f"{self.out.name}{suffix}")

    @property
    def title(self) -> str:
        return f"{self.entry['model']}, {self.out.name}"


@dataclass(frozen=True)
class Material:
    """A model as a folder, beside tokens.npy; used says in the record which tokens these are."""

    folder: Path
    flags: tuple[str, ...]
    used: Mapping[str, Any]

    def given(self, grid: tuple[int, int]) -> Given:
        return Given(self.folder, self.folder.with_name("tokens.npy"), self.flags, *grid)


def tasks(rows: Sequence[Row], order: Order) -> Iterator[Task]:
    """All rows on every model and grid that they can do. Files are written on the way."""
    for name in order.models:
        source = open_model(smollm2.gguf() if name == "smollm2" else name)
        title = TITLES.get(name, source.name)
        place = order.work / (title if order.layers is None else f"{title}-{order.layers}-layers")
        whole = _material(source, place, order, order.layers, order.samples)
        one = _material(source, order.work / f"{title}-warm-up", order, 1, 1)
        for bits, group_size in order.grids:
            grid = {"layers": order.layers, "bits": bits, "group_size": group_size}
            for row in (row for row in rows if bits in row.bits):
                windows = min(row.windows or order.samples, whole.used["windows"])
                entry = {"model": title, **grid, **row.told, "calibration": {**whole.used, "windows": windows}}
                out = place / f"{row.name}-w{bits}g{group_size}"
                yield Task(row, whole.given((bits, group_size)), one.given((bits, group_size)), out, entry)


def _material(source: Checkpoint, place: Path, order: Order, layers: int | None, samples: int) -> Material:
    folder = smollm2.export(source, place / "model", layers)
    loaded = calibration.load(order.text.spec, Tokenizer.of(source), samples, order.seq_len, 0)
    np.save(place / "tokens.npy", loaded.tokens)
    size = ("--samples", str(samples), "--seq-len", str(order.seq_len))
    said = {"source": loaded.source, "sha256": loaded.sha256, "windows": loaded.windows, "seq_len": order.seq_len}
    return Material(folder, (*order.text.after("--calib"), *size), said)

"""check: whether two artifacts, of whatever formats, hold the same weights; and how far their runtimes agree.

Every tensor is compared as float32, bit for bit but for the sign of zero, a piece at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from r1quant.arch.tables import Architecture, architecture_of, is_tied, linears
from r1quant.checkpoint.artifact import ROWS_LIMIT, Artifact, quantized, rows
from r1quant.errors import CheckpointError
from r1quant.jobs.artifacts import open_artifact, same_model
from r1quant.progress import Progress, Silent

Values = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Difference:
    """Where two tensors part. index: of the first number that differs; count: how many do; largest: |a - b|."""

    tensor: str
    index: tuple[int, ...]
    a: float
    b: float
    count: int
    largest: float

    def as_dict(self) -> dict[str, Any]:
        return {
            "tensor": self.tensor,
            "index": list(self.index),
            "a": self.a,
            "b": self.b,
            "differing": self.count,
            "largest": self.largest,
        }


@dataclass(frozen=True)
class Checked:
    """tensors: how many were compared; linears: how many of them are quantized in both."""

    a: Artifact
    b: Artifact
    tensors: int
    linears: int
    differences: tuple[Difference, ...]
    only_in_one: tuple[str, ...]

    @property
    def identical(self) -> bool:
        return not self.differences and not self.only_in_one

    def as_dict(self) -> dict[str, Any]:
        names = {
            *linears(self.a.config, architecture_of(self.a.config))[:-1],
            *self.a.linear_specs,
        }  # the head, if quantized
        apart = [d.tensor for d in self.differences if d.tensor.removesuffix(".weight") in names]
        return {
            "identical": self.identical,
            "linears_identical": not apart,
            "tensors": self.tensors,
            "linears": self.linears,
            "first_difference": self.differences[0].as_dict() if self.differences else None,
            "differing": [d.as_dict() for d in self.differences],
            "only_in_one": list(self.only_in_one),
            "a": {"path": self.a.source, "format": self.a.format},
            "b": {"path": self.b.source, "format": self.b.format},
        }


def check(a: str | Path, b: str | Path, progress: Progress | None = None) -> Checked:
    """Compares every tensor of two artifacts. Raises CheckpointError if they are not one model's."""
    progress = progress or Silent()
    one, other = open_artifact(a), open_artifact(b)
    arch = same_model(one, other)
    names, alone = _names(one, other, arch)
    progress.begin("comparing", sum(one.tensors[name].nbytes for name in names))
    differences = []
    for name in names:
        found = compare(one, other, name, arch.offset_of(name))
        if found is not None:
            differences.append(found)
        progress.advance(one.tensors[name].nbytes, name)
    both = sum(quantized(one, name) is not None and quantized(other, name) is not None for name in names)
    return Checked(one, other, len(names), both, tuple(differences), tuple(alone))


def _names(one: Artifact, other: Artifact, arch: Architecture) -> tuple[list[str], list[str]]:
    """Tensors in both, and those in one alone. What an architecture ignores, and a tied head, need not be there."""
    tied = is_tied(one.config)

    def counted(artifact: Artifact) -> set[str]:
        return {
            name
            for name in artifact.tensors
            if not name.endswith(arch.tensors.ignored) and not (tied and name == arch.tensors.head)
        }

    mine, theirs = counted(one), counted(other)
    return [name for name in one.tensors if name in mine & theirs], sorted(mine ^ theirs)


def compare(one: Artifact, other: Artifact, name: str, offset: int = 0) -> Difference | None:
    """The difference of a tensor in two artifacts, as float32; None if there is none.

    offset: what is added before the two are compared: of norms that multiply by one plus their weight a model knows,
    and GGUF stores, only this sum.
    """
    shape, theirs = one.tensors[name].shape, other.tensors[name].shape
    if shape != theirs:
        raise CheckpointError(
            f"{name} has the shape {list(shape)} in {one.source} and {list(theirs)} in {other.source}",
            "name two forms of one model",
        )
    first: tuple[int, float, float] | None = None
    count, largest, start = 0, 0.0, 0
    for a, b in zip(_pieces(one, name), _pieces(other, name), strict=True):
        if offset:
            a, b = a + np.float32(offset), b + np.float32(offset)
        apart = ~(a == b)
        if apart.any():
            where = int(apart.argmax())
            first = first or (start + where, float(a[where]), float(b[where]))
            count += int(apart.sum())
            largest = max(largest, float(np.abs(a.astype(np.float64) - b)[apart].max()))
        start += a.size
    if first is None:
        return None
    index = tuple(int(i) for i in np.unravel_index(first[0], shape))
    return Difference(name, index, first[1], first[2], count, largest)


def _pieces(artifact: Artifact, name: str) -> Iterator[Values]:
    """A tensor flat, in pieces of ROWS_LIMIT numbers but for the last, however it is stored."""
    held: list[Values] = []
    have = 0
    for piece in rows(artifact, name):
        held.append(piece.reshape(-1))
        have += piece.size
        while have >= ROWS_LIMIT:
            joined = np.concatenate(held)
            yield joined[:ROWS_LIMIT]
            held, have = [joined[ROWS_LIMIT:]], have - ROWS_LIMIT
    if have:
        yield np.concatenate(held)

"""A checkpoint seen in another basis, each tensor computed from the stored ones when it is read.

What a transform changes of a model is a rotation or a factor along the rows or columns of its tensors; it is never
written down on the way. It does not know why a tensor is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np
import numpy.typing as npt
import torch

from r1quant.checkpoint.safetensors import ITEM_SIZE, Checkpoint, TensorInfo, finite
from r1quant.core.floats import round_to
from r1quant.core.json import Config
from r1quant.engine.transforms.orthogonal import Rotation
from r1quant.errors import NumericError

ROWS = 8192
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Turn:
    """What becomes of one tensor, in this order. Rows are its first dimension, columns its last.

    source   the stored tensor it is computed from
    gamma    the norm whose weight its columns are multiplied by
    offset   what a norm adds to its weight: to that of gamma, or, without one, to the tensor itself if it is a norm's
    columns  what its columns are turned by
    rows     what its rows are turned by
    factor   float32 [K]: what its columns are multiplied by
    divisor  float32 [N]: what its rows are divided by
    ones     whether it multiplies by one instead
    """

    source: str
    gamma: str | None = None
    offset: int = 0
    columns: Rotation | None = None
    rows: Rotation | None = None
    factor: torch.Tensor | None = None
    divisor: torch.Tensor | None = None
    ones: bool = False

    @property
    def changes(self) -> bool:
        return self.ones or any(
            part is not None for part in (self.gamma, self.columns, self.rows, self.factor, self.divisor)
        )


@dataclass(frozen=True)
class View(Checkpoint):
    """`tensors` says what is presented; `file` and `offset` are those of the tensor that it is computed from. Products
    are made in float32 and rounded to the presented dtype, which is the only loss. In memory are one stored tensor and
    ROWS of its rows in float32; a tensor whose rows turn is there in float32 as a whole.

    inner  the checkpoint that is changed; may be a view itself
    turns  what becomes of each tensor, by name
    """

    inner: Checkpoint = field(repr=False)
    turns: Mapping[str, Turn] = field(repr=False)

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def dtype(self) -> str:
        return self.inner.dtype

    def unrounded(self) -> View:
        """The same with all that is computed presented in F32: for what is to be rounded to a grid."""
        inner = self.inner.unrounded()
        tensors = {}
        for name, info in self.tensors.items():
            turn = self.turns[name]
            dtype = "F32" if turn.changes else inner.info(turn.source).dtype
            tensors[name] = replace(info, dtype=dtype, nbytes=prod(info.shape) * ITEM_SIZE[dtype])
        return replace(self, tensors=tensors, inner=inner)

    def read_bytes(self, info: TensorInfo) -> Bytes:
        """The presented tensor's bytes as uint8 [nbytes]."""
        buffer, done = np.empty(info.nbytes, np.uint8), 0
        for chunk in self.chunks(info):
            buffer[done : done + chunk.size] = chunk
            done += chunk.size
        return buffer

    def chunks(self, info: TensorInfo) -> Iterator[Bytes]:
        """The presented tensor's bytes, some rows at a time.

        Raises NumericError if a number is beyond what the presented dtype holds.
        """
        turn = self.turns[info.name]
        if not turn.changes and turn.source == info.name:
            yield from self.inner.chunks(self.inner.info(info.name))
            return
        for piece in self._pieces(turn):
            raw = round_to(piece.contiguous().numpy(), info.dtype)
            if not finite(raw, info.dtype):
                raise NumericError(
                    f"{info.name}: transformed, it is beyond {info.dtype}", "convert the model to bfloat16"
                )
            yield raw

    def survey(self, step: Callable[[int], None] = lambda read: None) -> dict[str, str]:
        """That of the checkpoint as stored."""
        return self.inner.survey(step)

    def _pieces(self, turn: Turn) -> Iterator[torch.Tensor]:
        """Rows of a presented tensor in float32."""
        if turn.ones:
            yield torch.ones(self.inner.info(turn.source).shape) - turn.offset
            return
        stored = self.inner.read(turn.source)
        gamma = None if turn.gamma is None else self.inner.read(turn.gamma).float() + turn.offset
        own = turn.offset if turn.gamma is None else 0
        step = len(stored) if turn.rows else ROWS
        for start in range(0, len(stored), step):
            piece = stored[start : start + step].float()
            if gamma is not None:
                piece = piece * gamma
            if turn.columns is not None:
                piece = turn.columns(piece)
            if turn.rows is not None:
                piece = turn.rows(piece.movedim(0, -1)).movedim(-1, 0)
            if turn.factor is not None:
                piece = piece * turn.factor
            if turn.divisor is not None:
                divisor = turn.divisor[start : start + step]
                divisor = divisor.reshape(-1, *[1] * (piece.ndim - 1))
                piece = (piece + own) / divisor - own if own else piece / divisor
            yield piece


def view(
    checkpoint: Checkpoint,
    turns: Mapping[str, Turn],
    config: Config | None = None,
    config_text: str | None = None,
    tensors: Mapping[str, TensorInfo] | None = None,
) -> View:
    """The checkpoint with these turns and, if they are given, another config and other tensors."""
    presented = checkpoint.tensors if tensors is None else tensors
    return View(
        source=checkpoint.source,
        folder=checkpoint.folder,
        config=checkpoint.config if config is None else config,
        config_text=checkpoint.config_text if config_text is None else config_text,
        tensors=presented,
        side_files=checkpoint.side_files,
        inner=checkpoint,
        turns={name: Turn(name) for name in presented} | dict(turns),
    )

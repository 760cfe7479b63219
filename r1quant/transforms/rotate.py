"""Rotations that fold away: the same model in a basis where no channel of a weight stands out.

QuaRot (Ashkboos et al. 2024, arXiv 2404.00456) and SpinQuant (Liu et al. 2024, arXiv 2405.16406), as far as runtimes
need not know. R1 turns the residual stream: an RMSNorm commutes with it once its own weight has gone into the linears
that read it. R2 turns each head between v and o. What remains is a plain model of the same family whose norms are 1; a
head tied to the embedding becomes a tensor of its own, since only one of the two takes up the last norm.
It does not know how weights are rounded afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np
import numpy.typing as npt
import torch

from r1quant.archs import Architecture, architecture_of, head_dim, layer_count, size
from r1quant.checkpoint import ITEM_SIZE, Checkpoint, TensorInfo, finite
from r1quant.errors import NumericError
from r1quant.floats import round_to
from r1quant.transforms.orthogonal import Rotation, rotation

ROWS = 8192
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Turn:
    """What becomes of one tensor. Rows are its first dimension, columns its last.

    source   the stored tensor it is computed from
    gamma    the norm whose weight its columns are multiplied by
    columns  what its columns are turned by, then
    rows     what its rows are turned by
    ones     whether it is all ones instead
    """

    source: str
    gamma: str | None = None
    columns: Rotation | None = None
    rows: Rotation | None = None
    ones: bool = False


@dataclass(frozen=True)
class RotatedCheckpoint(Checkpoint):
    """A checkpoint seen in another basis, each tensor computed when it is read.

    `tensors` says what is presented; `file` and `offset` are those of the tensor that it is computed from. Products are
    made in float32 and rounded to the presented dtype, which is the only loss. In memory are one stored tensor and
    ROWS of its rows in float32; a tensor whose rows turn is there in float32 as a whole.

    inner  the checkpoint as stored
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

    def read_bytes(self, info: TensorInfo) -> Bytes:
        """The presented tensor's bytes as uint8 [nbytes]."""
        buffer, done = np.empty(info.nbytes, np.uint8), 0
        for chunk in self.chunks(info):
            buffer[done : done + chunk.size] = chunk
            done += chunk.size
        return buffer

    def chunks(self, info: TensorInfo) -> Iterator[Bytes]:
        """The presented tensor's bytes, some rows at a time.

        Raises NumericError where a number is beyond what the presented dtype holds.
        """
        turn = self.turns[info.name]
        if turn == Turn(info.name) and info == self.inner.info(info.name):
            yield from self.inner.chunks(info)
            return
        for piece in self._pieces(turn):
            raw = round_to(piece.contiguous().numpy(), info.dtype)
            if not finite(raw, info.dtype):
                raise NumericError(f"{info.name}: rotated, it is beyond {info.dtype}", "convert the model to bfloat16")
            yield raw

    def survey(self, step: Callable[[int], None] = lambda read: None) -> dict[str, str]:
        """That of the checkpoint as stored."""
        return self.inner.survey(step)

    def _pieces(self, turn: Turn) -> Iterator[torch.Tensor]:
        """Rows of a presented tensor in float32."""
        if turn.ones:
            yield torch.ones(self.inner.info(turn.source).shape)
            return
        stored = self.inner.read(turn.source)
        gamma = None if turn.gamma is None else self.inner.read(turn.gamma).float()
        step = len(stored) if turn.rows else ROWS
        for start in range(0, len(stored), step):
            piece = stored[start : start + step].float()
            if gamma is not None:
                piece = piece * gamma
            if turn.columns is not None:
                piece = turn.columns(piece)
            if turn.rows is not None:
                piece = turn.rows(piece.movedim(0, -1)).movedim(-1, 0)
            yield piece


def rotated(
    checkpoint: Checkpoint, *, residual: bool = True, heads: bool = True, seed: int = 0, wide: bool = False
) -> RotatedCheckpoint:
    """The checkpoint with its residual stream (R1), its heads between v and o (R2), or both, rotated at random.

    wide   whether the linears of the layers, which are to be rounded to a grid, are presented in F32 instead of being
           rounded to the stored dtype first

    Raises CheckpointError where the architecture is not known, config.json lacks a size, or a tensor is missing.
    """
    config, text, arch = checkpoint.config, checkpoint.config_text, architecture_of(checkpoint.config)
    names, tensors = arch.tensors, dict(checkpoint.tensors)
    stream = rotation(size(config, "hidden_size"), seed) if residual else None
    head_source = names.head
    if residual and (config.get("tie_word_embeddings") or names.head not in tensors):
        head_source = names.embedding
        tensors[names.head] = replace(checkpoint.info(names.embedding), name=names.head)
        config = {**config, "tie_word_embeddings": False}
        text = json.dumps(config, indent=2) + "\n"
    turns = {name: Turn(name) for name in tensors}
    if residual:
        turns[names.embedding] = Turn(names.embedding, columns=stream)
        turns[names.head] = Turn(head_source, names.final_norm, stream)
        turns[names.final_norm] = Turn(names.final_norm, ones=True)
    for index in range(layer_count(config, len(tensors))):
        head = rotation(head_dim(config), seed, index) if heads else None
        turns |= _layer_turns(arch, arch.layer_prefix(index), stream, head)
        for linear in arch.layer.linears if wide else ():
            name = f"{arch.layer_prefix(index)}{linear}.weight"
            tensors[name] = _as_float32(checkpoint.info(name))
    return RotatedCheckpoint(
        source=checkpoint.source,
        folder=checkpoint.folder,
        config=config,
        config_text=text,
        tensors=tensors,
        carried=checkpoint.carried,
        inner=checkpoint,
        turns=turns,
    )


def _layer_turns(arch: Architecture, prefix: str, stream: Rotation | None, head: Rotation | None) -> dict[str, Turn]:
    """Those of a decoder layer, biases as if present."""
    layer = arch.layer
    found = []
    for norm, linears in ((layer.attention_norm, layer.qkv), (layer.mlp_norm, layer.gate_up)):
        gamma = f"{prefix}{norm}.weight"
        found.append(Turn(gamma, ones=stream is not None))
        for linear in linears:
            rows = head if linear == arch.folds.attention_out else None
            found.append(Turn(f"{prefix}{linear}.weight", gamma if stream else None, stream, rows))
            found.append(Turn(f"{prefix}{linear}.bias", rows=rows))
    for linear, columns in ((layer.attention_out, head), (layer.down, None)):
        found.append(Turn(f"{prefix}{linear}.weight", columns=columns, rows=stream))
        found.append(Turn(f"{prefix}{linear}.bias", rows=stream))
    return {turn.source: turn for turn in found}


def _as_float32(info: TensorInfo) -> TensorInfo:
    return replace(info, dtype="F32", nbytes=prod(info.shape) * ITEM_SIZE["F32"])

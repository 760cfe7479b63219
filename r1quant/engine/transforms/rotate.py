"""Rotations that fold away: the same model in a basis where no channel of a weight stands out.

QuaRot (Ashkboos et al. 2024, arXiv 2404.00456) and SpinQuant (Liu et al. 2024, arXiv 2405.16406), as far as runtimes
need not know. R1 turns the residual stream: an RMSNorm commutes with it once its own weight has gone into the linears
that read it. R2 turns each head between v and o. What remains is a plain model of the same family whose norms are 1; a
head tied to the embedding becomes a tensor of its own, since only one of the two takes up the last norm.
It does not know how weights are rounded afterwards.
"""

from __future__ import annotations

import json
from dataclasses import replace

from r1quant.arch.tables import (
    NO_RESIDUAL_ROTATION,
    Architecture,
    architecture_of,
    head_dim,
    is_tied,
    layer_count,
    size,
)
from r1quant.checkpoint.safetensors import Checkpoint
from r1quant.engine.transforms.orthogonal import Rotation, rotation
from r1quant.engine.transforms.view import Turn, View, view
from r1quant.errors import RecipeError


def rotated(checkpoint: Checkpoint, *, residual: bool = True, heads: bool = True, seed: int = 0) -> View:
    """The checkpoint with its residual stream (R1), its heads between v and o (R2), or both, rotated at random.

    Raises CheckpointError if the architecture is not known, config.json lacks a size, or a tensor is missing, and
    RecipeError if norms stand between a block and the residual stream, which then cannot turn.
    """
    config, text, arch = checkpoint.config, checkpoint.config_text, architecture_of(checkpoint.config)
    names, tensors = arch.tensors, dict(checkpoint.tensors)
    if residual and arch.layer.post_norms:
        raise RecipeError(f"{arch.model_type}: {NO_RESIDUAL_ROTATION[0]}", NO_RESIDUAL_ROTATION[1])
    stream = rotation(size(config, "hidden_size"), seed) if residual else None
    head_source = names.head
    if residual and (is_tied(config) or names.head not in tensors):
        head_source = names.embedding
        tensors[names.head] = replace(checkpoint.info(names.embedding), name=names.head)
        config = {**config, "tie_word_embeddings": False}
        text = json.dumps(config, indent=2) + "\n"
    turns: dict[str, Turn] = {}
    if residual:
        turns[names.embedding] = Turn(names.embedding, columns=stream)
        turns[names.head] = Turn(head_source, names.final_norm, arch.norm_offset, stream)
        turns[names.final_norm] = Turn(names.final_norm, offset=arch.norm_offset, ones=True)
    for index in range(layer_count(config, len(tensors))):
        head = rotation(head_dim(config), seed, index) if heads else None
        turns |= _layer_turns(arch, arch.layer_prefix(index), stream, head)
    known = {name: turn for name, turn in turns.items() if name in tensors}
    return view(checkpoint, known, config=config, config_text=text, tensors=tensors)


def _layer_turns(arch: Architecture, prefix: str, stream: Rotation | None, head: Rotation | None) -> dict[str, Turn]:
    """Those of a decoder layer, biases as if present."""
    found = []
    values = {stage.producer for stage in arch.layer.stages if stage.input == "attention"}
    for stage in arch.layer.stages:
        gamma = f"{prefix}{stage.module}.weight" if stage.reads_hidden and stream else None
        if gamma is not None:
            found.append(Turn(gamma, offset=arch.norm_offset, ones=True))
        columns = stream if stage.reads_hidden else head if stage.input == "attention" else None
        for linear in stage.linears:
            rows = stream if stage.residual else head if linear in values else None
            found.append(Turn(f"{prefix}{linear}.weight", gamma, arch.norm_offset, columns, rows))
            found.append(Turn(f"{prefix}{linear}.bias", rows=rows))
    return {turn.source: turn for turn in found}

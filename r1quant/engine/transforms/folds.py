"""Folds: a factor for each input channel of some linears, taken out again if that input is made.

The columns of the linears are multiplied, the norm or linear before them is divided, and the layer computes what it
did. Biases of the linears stay as they are. Those of the linear before are divided with its rows: the bias of v comes
through attention unchanged, since the weights of attention sum to one, and that of up is added before the product with
the gate. It does not know how factors are chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch

from r1quant.arch.tables import Architecture, Stage, architecture_of, dimensions, head_dim
from r1quant.checkpoint.safetensors import Checkpoint
from r1quant.core.json import Config
from r1quant.engine.transforms.view import Turn, View, view


@dataclass(frozen=True, eq=False)
class Fold:
    """Linears that share an input, and what makes that input. Names are those within a layer.

    producer    a norm, or a linear whose output reaches the consumers multiplied by what does not depend on it
    consumers   the linears of one stage
    source      int64 [K]: the output channel of the producer that each input channel comes from. With grouped queries
                several heads of o read one head of v; the factors of such channels must be equal
    """

    producer: str
    consumers: tuple[str, ...]
    source: torch.Tensor

    def tied(self, values: torch.Tensor, reduce: Literal["mean", "amax"]) -> torch.Tensor:
        """values [K], those of channels with one source replaced by their mean or largest."""
        source = self.source.to(values.device)
        pooled = values.new_zeros(self.outputs)
        return pooled.scatter_reduce_(0, source, values, reduce, include_self=False)[source]

    @property
    def outputs(self) -> int:
        """Output channels of the producer."""
        return int(self.source.max()) + 1


def folds(arch: Architecture, config: Config) -> dict[str, Fold]:
    """One fold a stage, by its name, in the order of computation."""
    sizes = dimensions(config)

    def source(stage: Stage) -> torch.Tensor:
        """Through attention a head of v reaches all heads of o that share it."""
        if stage.input != "attention":
            return torch.arange(sizes[stage.columns])
        heads, head = sizes["query"] // sizes["value"], head_dim(config)
        return torch.arange(sizes["value"]).view(-1, 1, head).expand(-1, heads, -1).flatten()

    return {stage.name: Fold(stage.producer, stage.linears, source(stage)) for stage in arch.layer.stages}


def folded(checkpoint: Checkpoint, scales: Mapping[int, Mapping[str, torch.Tensor]]) -> View:
    """The checkpoint with the columns of each fold's consumers multiplied and the outputs of its producer divided.

    scales   of each layer, by its index, float32 [K] by the name of the stage; a stage that is not there stays as it
             is. What a norm loses when its quotient is rounded to its dtype is made up for in the factor, so that the
             two belong together exactly; channels of a norm that are zero or would vanish are left alone

    Raises ValueError if a factor is not positive and finite, or differs between channels of one source.
    """
    arch = architecture_of(checkpoint.config)
    turns: dict[str, Turn] = {}
    by_stage = folds(arch, checkpoint.config)
    for index, of_layer in scales.items():
        prefix = arch.layer_prefix(index)
        for stage, scale in of_layer.items():
            fold = by_stage[stage]
            divisor = _divisor(fold, scale)
            weight = f"{prefix}{fold.producer}.weight"
            if len(checkpoint.info(weight).shape) == 1:
                divisor = _held(checkpoint.read(weight), divisor, arch.offset_of(weight))
            for name in (weight, f"{prefix}{fold.producer}.bias"):
                if name in checkpoint.tensors:
                    offset = arch.offset_of(name)
                    turns[name] = replace(turns.get(name, Turn(name)), divisor=divisor, offset=offset)
            for linear in fold.consumers:
                name = f"{prefix}{linear}.weight"
                turns[name] = replace(turns.get(name, Turn(name)), factor=divisor[fold.source])
    return view(checkpoint, turns)


def _divisor(fold: Fold, scale: torch.Tensor) -> torch.Tensor:
    """Of the producer's outputs, float32 on the host."""
    wide = scale.float().cpu()
    divisor = torch.ones(fold.outputs)
    divisor[fold.source] = wide
    if not torch.equal(divisor[fold.source], wide):
        raise ValueError(f"{fold.producer}: channels that come from one source have different factors")
    if not bool((torch.isfinite(divisor) & (divisor > 0)).all()):
        raise ValueError(f"{fold.producer}: factors must be positive and finite")
    return divisor


def _held(norm: torch.Tensor, divisor: torch.Tensor, offset: int) -> torch.Tensor:
    """The divisor that gives what is stored of a norm's quotient, in its dtype; the norm multiplies by its weight plus
    the offset."""
    gain = norm.float() + offset
    quotient = (gain / divisor - offset).to(norm.dtype).float() + offset
    held = torch.isfinite(quotient) & (quotient != 0)
    return torch.where(held, gain / quotient, 1)

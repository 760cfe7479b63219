"""Folds: a factor for each input channel of some linears, taken out again where that input is made.

The columns of the linears are multiplied, the norm or linear before them is divided, and the layer computes what it
did. Biases of the linears stay as they are. Those of the linear before are divided with its rows: the bias of v comes
through attention unchanged, since the weights of attention sum to one, and that of up is added before the product with
the gate. It does not know how factors are chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from r1quant.archs import Architecture, head_dim, size


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

    def stacked(self, state: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The weights of the consumers as one stack of rows, [N, K]."""
        return torch.cat([state[f"{name}.weight"] for name in self.consumers])

    @property
    def outputs(self) -> int:
        """Output channels of the producer."""
        return int(self.source.max()) + 1


def folds(arch: Architecture, config: Mapping[str, Any]) -> tuple[Fold, ...]:
    """One fold a stage, in the order of `arch.layer.stages`."""
    hidden, inner = torch.arange(size(config, "hidden_size")), torch.arange(size(config, "intermediate_size"))
    heads, head = size(config, "num_attention_heads"), head_dim(config)
    kv_heads = size(config, "num_key_value_heads", heads)
    value = torch.arange(kv_heads * head).view(kv_heads, 1, head).expand(-1, heads // kv_heads, -1).flatten()
    layer, producer = arch.layer, arch.folds
    return (
        Fold(producer.qkv, layer.qkv, hidden),
        Fold(producer.attention_out, (layer.attention_out,), value),
        Fold(producer.gate_up, layer.gate_up, hidden),
        Fold(producer.down, (layer.down,), inner),
    )


def apply(
    state: MutableMapping[str, torch.Tensor], fold: Fold, scale: torch.Tensor, stored: torch.dtype
) -> torch.Tensor:
    """Multiplies the columns of the consumers by scale [K] and divides the outputs of the producer by it.

    state    the float32 tensors of one layer by their names within it, as of forward.layer_state; the changed ones are
             replaced
    stored   the dtype that norms are written in. What a norm loses when its quotient is rounded to it is made up for
             in the factor, so that the shipped norm and the returned factor belong together exactly

    Returns the float32 factor [K] that was applied. Raises ValueError where one is not positive and finite, or differs
    between channels of one source.
    """
    source = fold.source.to(scale.device)
    factor = torch.ones(fold.outputs, device=scale.device)
    factor[source] = scale.float()
    if not torch.equal(factor[source], scale.float()):
        raise ValueError(f"{fold.producer}: channels that come from one source have different factors")
    if not bool((torch.isfinite(factor) & (factor > 0)).all()):
        raise ValueError(f"{fold.producer}: factors must be positive and finite")
    weight = state[f"{fold.producer}.weight"]
    if weight.ndim == 1:
        quotient = (weight / factor).to(stored).float()
        held = torch.isfinite(quotient) & (quotient != 0)
        factor = torch.where(held, weight / quotient, 1)
        state[f"{fold.producer}.weight"] = torch.where(held, quotient, weight)
    else:
        state[f"{fold.producer}.weight"] = weight / factor[:, None]
        bias = state.get(f"{fold.producer}.bias")
        if bias is not None:
            state[f"{fold.producer}.bias"] = bias / factor
    applied = factor[source]
    for name in fold.consumers:
        state[f"{name}.weight"] = state[f"{name}.weight"] * applied
    return applied

"""Inside a decoder layer: how the input of each stage of linears is found, in the library's own modules.

A norm makes it of the hidden states, or a block (attention, MLP) runs with its output projection taken out, so that
the input of every linear is at hand and each stage can be quantized before the next one runs on it. Which stages there
are is said in arch/*.toml; another kind of block is another function here, in BLOCKS. It does not know where weights
come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from r1quant.arch.tables import Architecture, Stage


@dataclass(frozen=True, eq=False)
class DecoderLayer:
    """One filled decoder layer. All functions take and give [windows, seq_len, width] in the compute dtype.

    cos_sin  of the rotary embeddings, [1, seq_len, head_dim] each
    mask     bool [1, 1, seq_len, seq_len], which positions a token sees; None for all before it
    """

    module: nn.Module
    arch: Architecture
    cos_sin: tuple[torch.Tensor, torch.Tensor]
    mask: torch.Tensor | None

    @property
    def device(self) -> torch.device:
        return self.cos_sin[0].device

    @property
    def stages(self) -> tuple[Stage, ...]:
        """In the order of computation."""
        return self.arch.layer.stages

    def get(self, name: str) -> nn.Module:
        return self.module.get_submodule(name)

    def weight(self, linear: str) -> torch.Tensor:
        return self.get(linear).weight.data  # type: ignore[return-value]

    def set_weight(self, linear: str, weight: torch.Tensor) -> None:
        """Puts a dequantized weight in the place of the original; cast to the compute dtype."""
        current = self.weight(linear)
        self.get(linear).weight.data = weight.to(current.device, current.dtype)

    def input_of(self, stage: Stage, source: torch.Tensor) -> torch.Tensor:
        """What the linears of a stage read. source: the hidden states, or the input of the stage before, as
        `stage.reads_hidden` says."""
        return BLOCKS[stage.input](self, stage, source)

    def update_of(self, stage: Stage, x: torch.Tensor) -> torch.Tensor:
        """What a residual stage adds to the hidden states. x: its input."""
        (linear,) = stage.linears
        update = self.get(linear)(x)
        return self.get(stage.post_norm)(update) if stage.post_norm else update  # type: ignore[no-any-return]

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """The whole layer."""
        x = hidden
        for stage in self.stages:
            x = self.input_of(stage, hidden if stage.reads_hidden else x)
            if stage.residual:
                hidden = hidden + self.update_of(stage, x)
        return hidden

    @contextmanager
    def without(self, stage: Stage) -> Iterator[None]:
        """Inside, the linear of a stage gives what it reads."""
        (linear,) = stage.linears
        owner_name, _, attribute = linear.rpartition(".")
        owner, original = self.get(owner_name), self.get(linear)
        setattr(owner, attribute, nn.Identity())
        try:
            yield
        finally:
            setattr(owner, attribute, original)


def _norm(layer: DecoderLayer, stage: Stage, hidden: torch.Tensor) -> torch.Tensor:
    return layer.get(stage.module)(hidden)  # type: ignore[no-any-return]


def _attention(layer: DecoderLayer, stage: Stage, x: torch.Tensor) -> torch.Tensor:
    with layer.without(stage):
        attention = layer.get(stage.module)
        out, *_ = attention(hidden_states=x, position_embeddings=layer.cos_sin, attention_mask=layer.mask)
    return out  # type: ignore[no-any-return]


def _mlp(layer: DecoderLayer, stage: Stage, x: torch.Tensor) -> torch.Tensor:
    with layer.without(stage):
        return layer.get(stage.module)(x)  # type: ignore[no-any-return]


# By `input` of a stage: its input, from the hidden states or from the input of the stage before.
BLOCKS: Mapping[str, Callable[[DecoderLayer, Stage, torch.Tensor], torch.Tensor]] = {
    "norm": _norm,
    "attention": _attention,
    "mlp": _mlp,
}

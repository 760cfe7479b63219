"""Positions, as each layer of the library's model sees them: rotary embeddings, and how far back attention reaches.

Layers of several kinds (`layer_types` of the configuration) may have rotary embeddings of their own.
"""

from __future__ import annotations

from typing import Any

import torch

CosSin = tuple[torch.Tensor, torch.Tensor]


class Rotary:
    """The rotary embeddings of a model that was built on the meta device. model: of transformers, for causal text."""

    def __init__(self, model: Any, device: torch.device) -> None:
        config = model.config
        self._module = type(model.model.rotary_emb)(config=config).to(device)
        self._layers, kinds = int(config.num_hidden_layers), getattr(config, "layer_types", None) or ()
        self._kinds = tuple(kinds) if kinds and set(kinds) <= set(config.rope_parameters or ()) else None

    def __call__(self, like: torch.Tensor, positions: torch.Tensor) -> tuple[CosSin, ...]:
        """Cosine and sine for every layer, [rows, new, head_dim] each, in the dtype and on the device of `like`.

        positions: int64 [rows, new]
        """
        if self._kinds is None:
            return (self._module(like, positions),) * self._layers
        by_kind = {kind: self._module(like, positions, kind) for kind in dict.fromkeys(self._kinds)}
        return tuple(by_kind[kind] for kind in self._kinds)


def sliding_windows(config: Any) -> list[int | None]:
    """The sliding window of each layer, None if attention sees everything before it. config: of transformers."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        kinds = ["sliding_attention" if window else "full_attention"] * config.num_hidden_layers
    return [window if kind == "sliding_attention" else None for kind in kinds]

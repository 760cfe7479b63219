"""The numbers of a decoder that its graph is built with, read from config.json. It needs no onnx package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from r1quant.archs import head_dim, rms_epsilon, size
from r1quant.errors import CheckpointError

DEFAULT_WINDOW, DEFAULT_FIRST_WINDOW = 4096, 28  # of transformers, where the keys are missing


@dataclass(frozen=True)
class Dimensions:
    """`windows` has the sliding window of each layer, None where attention sees everything before it."""

    hidden: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int
    context: int
    epsilon: float
    windows: tuple[int | None, ...]

    @property
    def layers(self) -> int:
        return len(self.windows)

    @staticmethod
    def of(config: Mapping[str, Any]) -> Dimensions:
        """Raises CheckpointError where a number is missing, or the activation is not SiLU."""
        if config.get("hidden_act", "silu") not in ("silu", "swish"):
            raise CheckpointError(
                f"config.json: hidden_act {config['hidden_act']!r} is not supported in ONNX", "silu is supported"
            )
        heads = size(config, "num_attention_heads")
        return Dimensions(
            hidden=size(config, "hidden_size"),
            heads=heads,
            kv_heads=size(config, "num_key_value_heads", heads),
            head=head_dim(config),
            vocabulary=size(config, "vocab_size"),
            context=size(config, "max_position_embeddings"),
            epsilon=rms_epsilon(config),
            windows=_windows(config),
        )


def _windows(config: Mapping[str, Any]) -> tuple[int | None, ...]:
    """As the model classes of transformers decide it, their defaults for missing keys included."""
    layers, family = size(config, "num_hidden_layers"), config.get("model_type")
    stated = config.get("sliding_window", DEFAULT_WINDOW)
    if stated is None or family == "llama" or (family != "mistral" and not config.get("use_sliding_window")):
        return (None,) * layers
    window = size(config, "sliding_window", DEFAULT_WINDOW)
    kinds = config.get("layer_types")
    if family == "mistral":
        return (window,) * layers
    if kinds is None:
        first = config.get("max_window_layers", DEFAULT_FIRST_WINDOW)
        if not isinstance(first, int):
            raise _invalid("max_window_layers", first)
        return tuple(window if index >= first else None for index in range(layers))
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise _invalid("layer_types", kinds)
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _invalid(key: str, value: object) -> CheckpointError:
    return CheckpointError(f"config.json: {key} is {value!r:.100}", "restore the model's own config.json")

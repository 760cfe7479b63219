"""The numbers of a decoder that its graph is built with, read from config.json. It needs no onnx package."""

from __future__ import annotations

from dataclasses import dataclass

from r1quant.arch.kvcache import windows
from r1quant.arch.tables import head_dim, rms_epsilon, size
from r1quant.core.json import Config
from r1quant.errors import CheckpointError


@dataclass(frozen=True)
class Dimensions:
    """`windows` has the sliding window of every layer, None if attention sees everything before it."""

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
    def of(config: Config) -> Dimensions:
        """Raises CheckpointError if a number is missing, or the activation is not SiLU."""
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
            windows=windows(config),
        )

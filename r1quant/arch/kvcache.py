"""What attention keeps of every token, layer by layer: heads or a latent, and how far back a layer sees.

From config.json alone, of any family that says so there. It does not know how a runtime stores it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from r1quant.arch.tables import head_dim, size
from r1quant.core.json import Config
from r1quant.errors import CheckpointError

DEFAULT_WINDOW, DEFAULT_FIRST_WINDOW = 4096, 28  # of transformers' configurations, if keys are missing
SEEING_ALL = ("full_attention", "attention")
WINDOWED = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
WINDOWED_THROUGHOUT = ("mistral", "mixtral", "phi3")
UNLESS_STATED = ("mixtral", "phi3")  # those see everything if config.json names no window
ONLY_IF_ASKED = ("qwen2", "qwen3", "qwen2_moe", "qwen3_moe", "qwen3_next")  # by use_sliding_window
EVERY_NTH_FULL = {"gemma2": 2, "gemma3_text": 6, "cohere2": 4}  # if config.json does not list its layers


@dataclass(frozen=True)
class Cache:
    """Numbers that are kept.

    full      for each token, in all the layers that see everything
    windowed  for each token, in all the layers of one window, with that window
    shared    whether every device holds all of it when layers are split: a latent has no heads to divide
    heads     that keys and values have, which can be divided
    """

    full: int
    windowed: tuple[tuple[int, int], ...] = ()
    shared: bool = False
    heads: int = 1

    def numbers(self, tokens: float) -> float:
        """Of one text of so many tokens."""
        return self.full * tokens + sum(width * min(tokens, window) for width, window in self.windowed)

    def longest(self, numbers: float) -> float:
        """The longest text that so many numbers hold."""
        left, width = numbers, self.full + sum(width for width, _ in self.windowed)
        reached = 0.0
        for taken, window in sorted(self.windowed, key=lambda pair: pair[1]):
            if left < width * (window - reached):
                break
            left -= width * (window - reached)
            reached, width = window, width - taken
        return reached + max(0.0, left) / width if width else float("inf")


def cache_of(config: Config) -> Cache:
    """Multi-head, grouped and latent attention (MLA: one vector for keys and values of all heads, beside the rotary
    part of the keys). Raises CheckpointError if config.json lacks a size.
    """
    heads = size(config, "num_attention_heads")
    latent = config.get("kv_lora_rank")
    if latent:
        width, kv_heads = size(config, "kv_lora_rank") + size(config, "qk_rope_head_dim"), 1
    else:
        kv_heads = size(config, "num_key_value_heads", heads)
        width = 2 * kv_heads * head_dim(config)
    seen = windows(config)
    windowed = {window: width * seen.count(window) for window in seen if window}
    return Cache(
        width * seen.count(None), tuple((numbers, w) for w, numbers in windowed.items()), bool(latent), kv_heads
    )


def windows(config: Config) -> tuple[int | None, ...]:
    """How many tokens each layer sees: None for all; 0 if it keeps a state of fixed size instead.

    As the model classes of transformers decide it, their defaults for missing keys included.
    """
    layers, family = size(config, "num_hidden_layers"), str(config.get("model_type"))
    kinds, nth = config.get("layer_types"), EVERY_NTH_FULL.get(family)
    stated = config.get("sliding_window", None if family in UNLESS_STATED else DEFAULT_WINDOW)
    asked = family in WINDOWED_THROUGHOUT or nth is not None or config.get("use_sliding_window")
    if family == "llama" or stated is None:
        return _stateless(kinds, layers)
    if not asked:
        return _listed(config, kinds, layers) if family not in ONLY_IF_ASKED and kinds else _stateless(kinds, layers)
    window = size(config, "sliding_window", DEFAULT_WINDOW)
    if family in WINDOWED_THROUGHOUT:
        return (window,) * layers
    if kinds is not None:
        return _listed(config, kinds, layers)
    if nth is not None:
        every = size(config, "sliding_window_pattern", nth)
        return tuple(None if (index + 1) % every == 0 else window for index in range(layers))
    first = config.get("max_window_layers", DEFAULT_FIRST_WINDOW)
    if not isinstance(first, int):
        raise _invalid("max_window_layers", first)
    return tuple(window if index >= first else None for index in range(layers))


def _stateless(kinds: Any, layers: int) -> tuple[int | None, ...]:
    """Without windows, only layers of linear attention differ."""
    if not isinstance(kinds, list) or len(kinds) != layers:
        return (None,) * layers
    return tuple(None if kind in (*SEEING_ALL, *WINDOWED) else 0 for kind in kinds)


def _listed(config: Config, kinds: Any, layers: int) -> tuple[int | None, ...]:
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise _invalid("layer_types", kinds)
    found: list[int | None] = []
    for kind in kinds:
        if kind in WINDOWED:
            found.append(size(config, WINDOWED[kind], DEFAULT_WINDOW))
        else:
            found.append(None if kind in SEEING_ALL else 0)
    return tuple(found)


def _invalid(key: str, value: object) -> CheckpointError:
    return CheckpointError(f"config.json: {key} is {value!r:.100}", "restore the model's own config.json")

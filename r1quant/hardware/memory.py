"""What serving a model takes in memory beside its weights: cache, activations, the runtime itself; and what of a card's
memory there is for it. Pure: no card and no weight is looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from r1quant.arch.tables import size
from r1quant.core.json import Config
from r1quant.errors import RecipeError
from r1quant.hardware.cards import Card

# Of the memory, what a runtime can fill: the rest is the driver's and the system's, and fragments. macOS gives its GPU
# three quarters, at most, of what it shares with the processor.
USABLE = {"apple": 0.72, "jetson": 0.8, "cpu": 0.9, "laptop": 0.9}
MEMORY_SHARE = 0.92
# Context of the driver, code of the kernels, graphs, pools; of processors alone, that of a process.
RUNTIME_BYTES = 700_000_000
RUNTIME_OF = {"apple": 400_000_000, "cpu": 300_000_000}
CHUNK = 2048  # tokens of prompts that a runtime puts through the layers at the same time
KV_BITS: Mapping[int, float] = {16: 16.0, 8: 8.0, 4: 4.5}  # with a 16-bit scale for 32 numbers if there are 4


def usable(card: Card) -> int:
    """Bytes of a card that weights, cache, activations and runtime may take together."""
    return round(card.memory_bytes * USABLE.get(card.kind, MEMORY_SHARE))


def runtime_bytes(card: Card) -> int:
    """Of the runtime itself, on each card."""
    return RUNTIME_OF.get(card.kind, RUNTIME_BYTES)


def number_bytes(kv_bits: int) -> float:
    """Of a number in the cache, with its share of a scale. Raises RecipeError for bits that no runtime has."""
    if kv_bits not in KV_BITS:
        raise RecipeError(f"a cache of {kv_bits} bits is not supported", f"choose from {', '.join(map(str, KV_BITS))}")
    return KV_BITS[kv_bits] / 8


@dataclass(frozen=True)
class Activations:
    """Bytes at the most, while prompts are read: of each token of a chunk, and of each text (its logits)."""

    token: int = 0
    text: int = 0

    def nbytes(self, tokens: float, batch: int) -> int:
        """Of `batch` texts of so many tokens each."""
        return round(min(CHUNK, tokens * batch)) * self.token + batch * self.text


NO_ACTIVATIONS = Activations()


def activations_of(config: Config) -> Activations:
    """The widest tensors of a layer in 16 bits, and logits in 32 with a 16-bit copy."""
    hidden = size(config, "hidden_size")
    if config.get("moe_intermediate_size"):
        inner = size(config, "moe_intermediate_size") * size(config, "num_experts_per_tok", 1)
    else:
        inner = size(config, "intermediate_size", 4 * hidden)
    return Activations((4 * hidden + 2 * inner) * 2, size(config, "vocab_size") * 6)

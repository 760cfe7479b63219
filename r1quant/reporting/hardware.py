"""What the memory and speed model says of every variant on known cards: types for the report, without arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class MemoryCurve:
    """What one model takes of a card, in bytes; kv_bytes and activations_bytes at each context of the curve.

    max_context  the longest context that fits, at most the longest of the curve
    """

    name: str
    weights_bytes: int
    kv_bytes_per_token: int
    kv_bytes: tuple[int, ...]
    activations_bytes: tuple[int, ...]
    runtime_bytes: int
    max_context: int

    @property
    def total_bytes(self) -> list[int]:
        """At each context."""
        fixed = self.weights_bytes + self.runtime_bytes
        return [fixed + kv + active for kv, active in zip(self.kv_bytes, self.activations_bytes, strict=True)]


@dataclass(frozen=True)
class MemoryModel:
    """One card, and the curve of every model on it, the baseline first. usable_bytes: what a runtime may fill."""

    card: str
    memory_bytes: int
    usable_bytes: int
    contexts: tuple[int, ...]
    sides: tuple[MemoryCurve, ...]


@dataclass(frozen=True)
class CardFit:
    """One model on one card, one text at a time."""

    card: str
    memory_bytes: int
    name: str
    fits: bool
    total_bytes: int
    max_context: int
    decode_tokens_per_second: float


@dataclass(frozen=True)
class HardwareSummary:
    """weights_bytes: of each model by name; names: the models, the baseline first; rows: every model on every card.

    context  tokens at which the cards are compared
    """

    weights_bytes: Mapping[str, int]
    memory: MemoryModel
    context: int
    names: tuple[str, ...]
    rows: tuple[CardFit, ...]

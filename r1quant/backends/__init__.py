"""Backends: a model in a runtime that scores texts and completes prompts. Each offers what `Runtime` says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    temperature  divides the logits; 0 takes the likeliest token
    top_p        draws from the smallest set of tokens whose probabilities sum to at least this
    max_tokens   the most new tokens
    """

    temperature: float = 0.6
    top_p: float = 0.95
    max_tokens: int = 65536


@dataclass(frozen=True)
class Prompt:
    """One text to go on with.

    key       names the completion
    messages  what a chat server is sent: {"role": ..., "content": ...}
    tokens    the same, in the model's own chat format and encoded, for runtimes that take tokens
    seed      of the draws, which do not depend on what else is in the batch
    """

    key: str
    messages: tuple[Mapping[str, str], ...]
    tokens: tuple[int, ...]
    seed: int = 0


@dataclass(frozen=True)
class Completion:
    """What followed a prompt.

    ids       the new tokens, the one that ended it included; empty if a server gives text only
    text      what a server gave; empty if a runtime gives ids only
    count     of new tokens
    finished  whether it ended by itself; if not, it was cut at max_tokens or at the end of the context
    moments   seconds from the begin of this prompt to each of its tokens; empty if unknown
    """

    key: str
    ids: tuple[int, ...]
    text: str
    count: int
    finished: bool
    moments: tuple[float, ...] = ()


class Runtime(Protocol):
    """A loaded model."""

    @property
    def name(self) -> str:
        """As the user calls the backend: torch, onnxruntime, llamacpp, ..."""

    def logits(self, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """int64 [n] -> float32 [n, vocabulary]: what follows each token."""

    def complete(self, prompts: Iterable[Prompt], sampling: Sampling, stop: frozenset[int]) -> Iterator[Completion]:
        """Completions in whatever order they end; a token in `stop` ends one. Prompts are drawn as there is room."""

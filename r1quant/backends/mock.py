"""A runtime without a model: invented answers and distributions whose truth is known.

For trying pipelines, gates and statistics, and for testing them against what must come out. Nothing that it says is
about any model: whatever is recorded with the backend `mock` is made up. It does not know problems, only their answers.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from r1quant.backends import Completion, Prompt, Sampling
from r1quant.core.thinking import CLOSING, OPENING
from r1quant.errors import RecipeError

PREFIX = "mock"
HINT = "write mock:0.85, or mock:accuracy=0.85,truncated=0.02,loops=0.01,noise=0.1,seed=0"
GOLDEN, MIX_1, MIX_2 = (np.uint64(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
SHORTEST, LONGEST, OF_A_LOOP = 40, 400, 600  # words
SPREAD = 2.0  # of the logits


@dataclass(frozen=True)
class Truth:
    """What a mock is.

    accuracy   of its answers: the probability of a right one
    truncated  the probability of reasoning that is cut off before it answers
    loops      the probability of reasoning that repeats itself until it is cut off
    noise      standard deviation of what is added to each logit: between two mocks of one vocabulary, of which one
               has no noise, the KL divergence is about noise**2 / 2 * (1 - sum p**2)
    seed       another one draws independently; mocks of the same seed meet the same luck at each prompt

    The rest of the probability is on wrong answers. Raises RecipeError where that is less than none.
    """

    accuracy: float = 1.0
    truncated: float = 0.0
    loops: float = 0.0
    noise: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        shares = (self.accuracy, self.truncated, self.loops)
        if not (all(0 <= share <= 1 for share in shares) and sum(shares) <= 1 + 1e-9 and 0 <= self.noise < np.inf):
            raise RecipeError(f"accuracy, truncated and loops of a mock cannot be {shares}", HINT)

    @classmethod
    def of(cls, spec: str) -> Truth:
        """From mock, mock:0.85 or mock:accuracy=0.85,noise=0.1. Raises RecipeError for anything else."""
        prefix, _, given = spec.partition(":")
        kinds = {field.name: int if field.name == "seed" else float for field in fields(cls)}
        found: dict[str, float] = {}
        try:
            for part in filter(None, given.split(",")):
                name, _, value = part.partition("=") if "=" in part else ("accuracy", "", part)
                if name.strip() in found:
                    raise ValueError(name)
                found[name.strip()] = kinds[name.strip()](value)
        except (KeyError, ValueError):
            raise RecipeError(f"{spec!r} describes no mock", HINT) from None
        if prefix != PREFIX:
            raise RecipeError(f"{spec!r} describes no mock", HINT)
        return cls(**found)  # type: ignore[arg-type]


class Mock:
    """The runtime. answers: the right one for each prompt's key."""

    def __init__(self, spec: str, answers: Mapping[str, str], vocabulary: int = 512) -> None:
        self.truth, self._answers, self._vocabulary = Truth.of(spec), answers, vocabulary

    @property
    def name(self) -> str:
        return PREFIX

    def logits(self, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """int64 [n] -> float32 [n, vocabulary]: pseudo-random, and decided by all tokens up to each position."""
        rows = np.empty(len(tokens), np.uint64)
        state = np.zeros(1, np.uint64)
        steps = GOLDEN * (tokens.astype(np.uint64) + np.uint64(1))
        for i in range(len(tokens)):
            state = _mixed(state + steps[i : i + 1])
            rows[i] = state[0]
        out = SPREAD * _normal(rows, self._vocabulary)
        if self.truth.noise:
            salt = _mixed(np.array([self.truth.seed + 1], np.uint64))
            out += self.truth.noise * _normal(_mixed(rows ^ salt), self._vocabulary)
        return out.astype(np.float32)

    def complete(self, prompts: Iterable[Prompt], sampling: Sampling, stop: frozenset[int]) -> Iterator[Completion]:
        """As text; tokens are words here. What is longer than max_tokens is cut, whatever the truth says.

        A prompt that has no answer gets none: reasoning, and a sentence that says so.
        """
        for prompt in prompts:
            text, finished = self._text(prompt, sampling.max_tokens)
            words = text.split(" ")
            if len(words) > sampling.max_tokens:
                words, finished = words[: sampling.max_tokens], False
            yield Completion(prompt.key, (), " ".join(words), len(words), finished)

    def _text(self, prompt: Prompt, cap: int) -> tuple[str, bool]:
        truth, rng = self.truth, random.Random(f"{self.truth.seed}/{prompt.seed}/{prompt.key}")
        luck, length = rng.random(), rng.randint(SHORTEST, LONGEST)
        if luck >= 1 - truth.loops:
            return f"{OPENING}\n" + " ".join(["Wait, let me check that again."] * (min(cap, OF_A_LOOP) // 6 + 1)), False
        reasoning = f"{OPENING}\n" + " ".join(f"step {rng.randint(0, 999)}." for _ in range(length // 2))
        if luck >= 1 - truth.loops - truth.truncated:
            return reasoning, False
        if prompt.key not in self._answers:
            return f"{reasoning}\n{CLOSING}\n\nThis mock knows no answer.", True
        right = self._answers[prompt.key]
        answer = right if luck < truth.accuracy else _wrong(right, rng)
        return f"{reasoning}\n{CLOSING}\n\n\\boxed{{{answer}}}", True


def _wrong(right: str, rng: random.Random) -> str:
    """Another integer of 0 .. 999; wrong whatever the right one is."""
    try:
        return str((int(right) + rng.randint(1, 999)) % 1000)
    except ValueError:
        return str(rng.randint(0, 999))


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele, Lea and Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * MIX_1
    values = (values ^ (values >> np.uint64(27))) * MIX_2
    return values ^ (values >> np.uint64(31))


def _normal(rows: npt.NDArray[np.uint64], count: int) -> npt.NDArray[np.float64]:
    """Standard normal [rows, count], decided by each row's number (Box and Muller 1958)."""
    half = (count + 1) // 2
    columns = GOLDEN * np.arange(1, 2 * half + 1, dtype=np.uint64)
    uniform = (_mixed(rows[:, None] + columns) >> np.uint64(11)) * 2.0**-53 + 2.0**-54
    radius, angle = np.sqrt(-2 * np.log(uniform[:, :half])), 2 * np.pi * uniform[:, half:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)[:, :count]

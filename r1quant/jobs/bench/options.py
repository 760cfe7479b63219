"""What bench runs, and how often, as it is asked for."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from r1quant.core.options import Within, check, option
from r1quant.errors import RecipeError

LOADS, REPEATS = "Loads", "Repeats"


@dataclass(frozen=True)
class Load:
    """One point of the grid: `batch` texts at the same time, so many tokens in and out of each."""

    prompt_tokens: int
    new_tokens: int
    batch: int


@dataclass(frozen=True)
class BenchOptions:
    """What is run, and how often: all combinations of the three lists."""

    prompt_tokens: tuple[int, ...] = option(
        (512,), LOADS, "Tokens in each prompt; several with commas between: 512,4096. Repeatable.", Within(1)
    )
    new_tokens: tuple[int, ...] = option(
        (128,), LOADS, "Tokens that each text is continued by; several with commas between. Repeatable.", Within(2)
    )
    batch: tuple[int, ...] = option(
        (1,), LOADS, "Texts at the same time; several with commas between: 1,8,32. Repeatable.", Within(1)
    )
    repeats: int = option(5, REPEATS, "How often each load is measured.", Within(1))
    warm_up: int = option(1, REPEATS, "How often each load is run before it is measured.", Within(0))

    def __post_init__(self) -> None:
        """Raises RecipeError naming the first value that is not possible."""
        check(self)
        for name in ("prompt_tokens", "new_tokens", "batch"):
            if not getattr(self, name):
                raise RecipeError(f"{name.replace('_', '-')} is empty", "give at least one number")

    @property
    def loads(self) -> list[Load]:
        return [Load(*point) for point in itertools.product(self.prompt_tokens, self.new_tokens, self.batch)]

"""What a model is asked when it writes its own calibration text, and how its answers are drawn."""

from __future__ import annotations

from dataclasses import dataclass, field

from r1quant.backends import Sampling
from r1quant.core.options import Text, Within, check, option
from r1quant.data import selfcalib
from r1quant.jobs.setup import Setup

PROMPTS, DRAWING = "Prompts", "Answers"


@dataclass(frozen=True)
class GenerateOptions:
    """What a model is asked, and how its answers are drawn. setup: how the model is run."""

    prompts: str | None = option(
        None,
        PROMPTS,
        "JSONL file of prompts.",
        Text("name a JSONL file"),
        shown="128 bundled ones; for tiny-r1, its own problems",
    )
    limit: int | None = option(None, PROMPTS, "Ask only the first so many prompts.", Within(1))
    samples_per_prompt: int = option(1, PROMPTS, "Answers to each prompt, all drawn anew.", Within(1))
    max_tokens: int = option(
        4096, DRAWING, "Length at which an answer is cut off, in tokens; what was cut off is kept.", Within(1)
    )
    temperature: float = option(
        selfcalib.TEMPERATURE, DRAWING, "Temperature at which answers are drawn; 0 is greedy.", Within(0)
    )
    top_p: float = option(
        selfcalib.TOP_P,
        DRAWING,
        "Draw from the likeliest tokens that make up this much probability.",
        Within(0, 1, above=True),
    )
    seed: int = option(0, DRAWING, "Sampling seed; each answer has a seed of its own that follows from it.", Within(0))
    setup: Setup = field(default_factory=Setup)

    def __post_init__(self) -> None:
        """Raises RecipeError naming the first value that is not possible."""
        check(self)

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_p, self.max_tokens)

"""Reasoning in words: small problems, each solved aloud with restating, trial, doubt and verification.

Every family computes its numbers, so what is said is true, slips that are taken back at once excepted. The wording
is drawn from many phrasings; the same seed gives the same stream. It does not know about tokenizers or models.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from . import algebra, arithmetic, code, counting, geometry, languages, logic, numbers, units  # noqa: F401  fill FAMILIES
from .voice import ENDINGS, FAMILIES, Trace, Voice

INSTRUCTIONS = (
    "Please reason step by step, and put your final answer within \\boxed{}.",
    "Think it through and box the final answer.",
    "Show your reasoning. Put the result in \\boxed{}.",
    "",
)
ANSWERS = (
    "{summary}\n\n\\boxed{{{answer}}}",
    "**Answer.** {summary}\n\n$$\\boxed{{{answer}}}$$",
    "{summary} The final answer is \\boxed{{{answer}}}.",
    "### Solution\n\n{summary}\n\n**Final answer:** \\boxed{{{answer}}}",
)


def dialogue(trace: Trace, rng: random.Random) -> list[dict[str, str]]:
    """The trace as a user turn and an assistant turn with its reasoning inside `<think>`."""
    thoughts = list(trace.thoughts)
    if trace.english and rng.random() < 0.6:
        thoughts.append(rng.choice(ENDINGS).format(trace.answer.removeprefix("\\text{").removesuffix("}")))
    joint = "\n\n" if rng.random() < 0.75 else "\n"
    form, instruction = (rng.choice(ANSWERS), rng.choice(INSTRUCTIONS)) if trace.english else (ANSWERS[0], "")
    final = form.format(summary=trace.summary, answer=trace.answer)
    return [
        {"role": "user", "content": f"{trace.question}\n{instruction}".strip()},
        {"role": "assistant", "content": f"<think>\n{joint.join(thoughts)}\n</think>\n\n{final}"},
    ]


def dialogues(seed: int) -> Iterator[list[dict[str, str]]]:
    """An endless stream, every family once before any comes again; no question twice."""
    rng = random.Random(seed)
    seen: set[str] = set()
    while True:
        for make in rng.sample(FAMILIES, len(FAMILIES)):
            trace = make(rng, Voice(rng))
            if trace.question not in seen:
                seen.add(trace.question)
                yield dialogue(trace, rng)


def question_of(turns: list[dict[str, str]]) -> str:
    """What the user asks, without the instruction."""
    text = turns[0]["content"]
    return next((text.removesuffix(i).strip() for i in INSTRUCTIONS if i and text.endswith(i)), text)

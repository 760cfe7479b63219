# ruff: noqa: E501  the lines are sentences
"""The phrasings, and the form of a problem solved aloud. It knows no problems."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass


def words(text: str) -> list[str]:
    return text.split()


OPENINGS = (
    "Okay, let me start by understanding the question.",
    "Alright, so I need to work this out carefully.",
    "Let me read the problem again.",
    "Hmm, let me think about this.",
    "First, let me write down what is given.",
    "So the task is clear enough, but the details matter.",
    "Let's see.",
    "Okay, so what exactly is being asked here?",
    "Let me set this up properly before computing anything.",
    "I want to be careful with the wording here.",
)
WAITS = (
    "Wait, let me check that again.",
    "Wait, did I misread something?",
    "Hold on.",
    "Hmm, wait a moment.",
    "Actually, let me double-check this step.",
    "Wait, is that right?",
    "But hold on, I should be sure about that.",
    "Let me pause here, because it is easy to slip.",
)
CHECKS = (
    "Let me verify with another method.",
    "To be safe, let me check the result.",
    "Let me test this against the original statement.",
    "A quick sanity check:",
    "Let me confirm by going backwards.",
    "I can verify this differently.",
    "Before answering, let me make sure.",
)
FINES = (
    "Good, that matches.",
    "Yes, the same result.",
    "That agrees, so I am confident.",
    "Great, both ways agree.",
    "Okay, it holds up.",
    "So the answer is consistent.",
    "That confirms it.",
)
ENDINGS = (
    "So the answer is {}.",
    "Therefore the result is {}.",
    "I'm confident that the answer is {}.",
    "That gives {} as the final answer.",
    "So it should be {}.",
    "Hence {}.",
)
NAMES = words(
    "Amina Bruno Chloe Dmitri Elif Farid Greta Hana Ivan Jonas Kavya Lena Mateo Nadia Omar Priya Quentin Rosa Sven Tomas Uma Viktor Wen Ximena Yusuf Zofia"
)
THINGS = words("apples notebooks pencils tickets candles marbles postcards plums tiles bolts seedlings stickers")


@dataclass(frozen=True)
class Trace:
    """One problem and its solution: `thoughts` are the paragraphs of the reasoning, `summary` precedes the box."""

    question: str
    thoughts: list[str]
    summary: str
    answer: str
    english: bool = True


class Voice:
    """A random choice of words. `wait`, `check` and `slip` may say nothing at all."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def one(self, *choices: str) -> str:
        return self.rng.choice(choices)

    def open(self, restated: str) -> str:
        return f"{self.rng.choice(OPENINGS)} {restated}"

    def wait(self, remark: str) -> list[str]:
        return [f"{self.rng.choice(WAITS)} {remark}"] if self.rng.random() < 0.6 else []

    def check(self, remark: str) -> list[str]:
        if self.rng.random() < 0.25:
            return []
        return [f"{self.rng.choice(CHECKS)} {remark} {self.rng.choice(FINES)}"]

    def slip(self, wrong: object, right: object, why: str) -> list[str]:
        if self.rng.random() < 0.6 or wrong == right:
            return []
        return [f"At first I get {wrong}. {self.rng.choice(WAITS)} {why} So it is {right}, not {wrong}."]


Family = Callable[[random.Random, Voice], Trace]
FAMILIES: list[Family] = []


def family(function: Family) -> Family:
    FAMILIES.append(function)
    return function


def listed(items: Iterable[object]) -> str:
    *first, last = map(str, items)
    return f"{', '.join(first)} and {last}" if first else last

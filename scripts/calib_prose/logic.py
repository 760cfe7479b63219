# ruff: noqa: E501  the lines are sentences
"""Logic puzzles."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

from .voice import NAMES, Trace, Voice, family, words


@family
def knights(rng: random.Random, v: Voice) -> Trace:
    a, b, c = rng.sample(NAMES, 3)
    worlds = list(itertools.product((True, False), repeat=3))
    claims: dict[str, Callable[[tuple[bool, ...]], bool]] = {
        f"{b} is a liar": lambda w: not w[1],
        f"{c} is a knight": lambda w: w[2],
        f"{b} and {c} are of the same kind": lambda w: w[1] == w[2],
        "exactly one of us is a knight": lambda w: sum(w) == 1,
        "at least two of us are liars": lambda w: sum(w) <= 1,
        f"{a} is a liar": lambda w: not w[0],
        f"{a} and {c} are of different kinds": lambda w: w[0] != w[2],
    }
    while True:
        said = rng.sample(list(claims), 3)
        if any(who in text.split(" ")[:3] for who, text in zip((a, b, c), said, strict=True)):
            continue
        fits = [w for w in worlds if all(w[i] == claims[said[i]](w) for i in range(3))]
        if len(fits) == 1:
            break
    names = (a, b, c)
    statements = " ".join(f"{n} says: {t}." for n, t in zip(names, said, strict=True))
    question = (
        f"On an island knights always tell the truth and liars always lie. {statements} How many of them are knights?"
    )
    cases = []
    for w in worlds:
        kinds = ", ".join(f"{n} {'knight' if k else 'liar'}" for n, k in zip(names, w, strict=True))
        bad = next((i for i in range(3) if w[i] != claims[said[i]](w)), None)
        if bad is None:
            cases.append(f"{kinds}: every statement fits.")
        else:
            truth = "true" if claims[said[bad]](w) else "false"
            cases.append(
                f"{kinds}: then what {names[bad]} says is {truth}, but {names[bad]} is a {'knight' if w[bad] else 'liar'}. Contradiction."
            )
    rng.shuffle(cases)
    answer = sum(fits[0])
    thoughts = [
        v.open("Three people, each a knight or a liar, so eight cases. I can go through all of them."),
        "\n".join(f"{i}. {case}" for i, case in enumerate(cases, 1)),
        f"Only one case survives, with {answer} knight{'s' if answer != 1 else ''}.",
    ]
    found = ", ".join(f"{n} is a {'knight' if k else 'liar'}" for n, k in zip(names, fits[0], strict=True))
    return Trace(question, thoughts, f"The only consistent case: {found}.", str(answer))


@family
def queue_order(rng: random.Random, v: Voice) -> Trace:
    order = rng.sample(NAMES, 5)
    a, b, c, d, e = order
    clues = [
        f"{a} is in front of everybody else.",
        f"{b} stands directly before {c}.",
        f"{e} comes after {d}.",
        f"{d} is not directly behind {a}.",
        f"{c} stands exactly in the middle.",
    ]
    rng.shuffle(clues)
    place = rng.choice([1, 3, 4])
    word = {1: "second", 3: "fourth", 4: "last"}[place]
    question = f"Five people stand in a queue. {' '.join(clues)} Who is {word}?"
    thoughts = [
        v.open("Five places in a row, and five clues."),
        f"{a} is first, and {c} in the middle is in place 3.",
        f"{b} stands directly before {c}, so {b} has place 2.",
        *v.wait(f"That also explains why {d} is not directly behind {a}: the place is taken by {b}."),
        f"Places 4 and 5 remain for {d} and {e}, and {e} comes after {d}. So the order is {', '.join(order)}.",
        *v.check("Going through the clues one by one, each of them holds."),
    ]
    return Trace(question, thoughts, f"The order is {', '.join(order)}.", f"\\text{{{order[place]}}}")


@family
def syllogism(rng: random.Random, v: Voice) -> Trace:
    x, y, z = rng.sample(words("bloops razzies lazzies wugs dax tovs mimsies borogoves florps grunts"), 3)
    valid = rng.random() < 0.5
    second = f"All {y} are {z}" if valid else f"Some {y} are {z}"
    question = f"All {x} are {y}. {second}. Does it follow that all {x} are {z}? Answer yes or no."
    if valid:
        body = [
            f"Take any one of the {x}. By the first sentence it is one of the {y}. By the second, it is one of the {z}.",
            f"I took an arbitrary one, so it holds for all {x}.",
        ]
    else:
        body = [
            f"Suppose the {y} that are {z} are just those that are not {x}. Then both sentences are true.",
            f"But in that case none of the {x} is among the {z}. One counterexample is enough.",
            *v.wait("'Some' says nothing about which ones. It would be a mistake to read it as 'all'."),
        ]
    answer = "yes" if valid else "no"
    return Trace(
        question,
        [v.open("The words mean nothing, only the form counts."), *body],
        f"The conclusion {'follows' if valid else 'does not follow'}.",
        f"\\text{{{answer}}}",
    )


@family
def weekday(rng: random.Random, v: Voice) -> Trace:
    days = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
    today, n = rng.randrange(7), rng.randint(20, 500)
    answer = days[(today + n) % 7]
    thoughts = [
        v.open("Weekdays repeat every seven days, so only the remainder by 7 counts."),
        f"{n} = 7 × {n // 7} + {n % 7}.",
        f"From {days[today]}, {n % 7} further day{'s' if n % 7 != 1 else ''} lead to {answer}.",
        *v.check(f"After {n - n % 7} days it is {days[today]} again, and then {n % 7} more."),
    ]
    return Trace(
        f"Today is {days[today]}. Which day of the week is it in {n} days?",
        thoughts,
        f"${n} \\equiv {n % 7} \\pmod 7$.",
        f"\\text{{{answer}}}",
    )

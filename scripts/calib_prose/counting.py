# ruff: noqa: E501  the lines are sentences
"""Counting and chance."""

from __future__ import annotations

import math
import random

from .voice import Trace, Voice, family, listed, words


@family
def committee(rng: random.Random, v: Voice) -> Trace:
    men, women = rng.randint(3, 7), rng.randint(3, 7)
    k = rng.randint(2, 4)
    every, without = math.comb(men + women, k), math.comb(men, k)
    answer = every - without
    kind = v.one("engineers and designers", "violinists and cellists", "seniors and juniors", "cooks and waiters")
    first, second = kind.split(" and ")
    question = f"From {men} {first} and {women} {second}, {k} people are chosen. How many choices have at least one of the {second}?"
    direct = [math.comb(women, j) * math.comb(men, k - j) for j in range(1, k + 1)]
    thoughts = [
        v.open(f"At least one suggests counting the opposite: no {second} at all."),
        f"All choices: C({men + women}, {k}) = {every}. Choices from the {first} only: C({men}, {k}) = {without}.",
        f"So {every} - {without} = {answer}.",
        *v.check(f"Directly, by the number of {second}: {' + '.join(map(str, direct))} = {sum(direct)}."),
    ]
    return Trace(
        question, thoughts, f"$\\binom{{{men + women}}}{{{k}}} - \\binom{{{men}}}{{{k}}} = {answer}$.", str(answer)
    )


@family
def letters(rng: random.Random, v: Voice) -> Trace:
    word = rng.choice(
        words("LEVEL BANANA COFFEE SUMMER PEPPER TATTOO LETTER NOON ROTOR CANAL HAPPY BUBBLE ESSEX ONION")
    )
    counts = {c: word.count(c) for c in dict.fromkeys(word)}
    repeated = {c: k for c, k in counts.items() if k > 1}
    bottom = math.prod(math.factorial(k) for k in counts.values())
    top = math.factorial(len(word))
    answer = top // bottom
    thoughts = [
        v.open(f"The word {word} has {len(word)} letters: {listed(f'{c} {k}×' for c, k in counts.items())}."),
        f"If all letters were different there would be {len(word)}! = {top} orders.",
        *v.wait("Swapping equal letters changes nothing, so each arrangement has been counted several times."),
        f"Divide by {' × '.join(f'{k}!' for k in repeated.values())} = {bottom}: {top} / {bottom} = {answer}.",
    ]
    question = v.one(
        f"How many different arrangements do the letters of {word} have?",
        f"In how many ways can the letters of the word {word} be ordered?",
    )
    return Trace(question, thoughts, f"$\\frac{{{len(word)}!}}{{{bottom}}} = {answer}$.", str(answer))


@family
def grid_paths(rng: random.Random, v: Voice) -> Trace:
    a, b = rng.randint(2, 5), rng.randint(2, 5)
    answer = math.comb(a + b, a)
    rows = [[math.comb(i + j, i) for j in range(a + 1)] for i in range(b + 1)]
    table = "\n".join(" ".join(f"{x:>3}" for x in row) for row in rows)
    question = f"A robot moves on a grid from (0, 0) to ({a}, {b}), each step one to the right or one up. How many paths are there?"
    thoughts = [
        v.open(f"Every path has {a} steps to the right and {b} up, {a + b} in all."),
        f"A path is decided by which of the {a + b} steps go right: C({a + b}, {a}) = {answer}.",
        *(
            [
                f"I can also fill in a table where each entry is the sum of its left and lower neighbours:\n{table}\n"
                f"The last entry is {answer}."
            ]
            if rng.random() < 0.6
            else []
        ),
        *v.check(f"By symmetry C({a + b}, {b}) must be the same, {math.comb(a + b, b)}."),
    ]
    return Trace(question, thoughts, f"$\\binom{{{a + b}}}{{{a}}} = {answer}$ paths.", str(answer))


@family
def either_multiple(rng: random.Random, v: Voice) -> Trace:
    n, (p, q) = rng.randint(50, 900), rng.sample([2, 3, 4, 5, 6, 7, 9, 11], 2)
    m = math.lcm(p, q)
    a, b, c = n // p, n // q, n // m
    thoughts = [
        v.open(f"I count multiples of {p}, then multiples of {q}, and take care not to count any twice."),
        f"Multiples of {p}: floor({n}/{p}) = {a}. Multiples of {q}: floor({n}/{q}) = {b}.",
        *v.slip(a + b, a + b - c, f"Multiples of {m} are in both lists, and there are floor({n}/{m}) = {c} of them."),
        f"By inclusion and exclusion: {a} + {b} - {c} = {a + b - c}.",
    ]
    question = f"How many integers from 1 to {n} are divisible by {p} or by {q}?"
    return Trace(question, thoughts, f"${a} + {b} - {c} = {a + b - c}$.", str(a + b - c))


@family
def urn(rng: random.Random, v: Voice) -> Trace:
    red, blue = rng.randint(3, 8), rng.randint(3, 8)
    n = red + blue
    top, bottom = red * (red - 1) + blue * (blue - 1), n * (n - 1)
    g = math.gcd(top, bottom)
    p, q = top // g, bottom // g
    question = (
        f"A box holds {red} red and {blue} blue balls. Two are drawn without putting back. The probability that they "
        "have the same colour is p/q in lowest terms. Find p + q."
    )
    thoughts = [
        v.open("Same colour means both red or both blue. These exclude each other, so the probabilities add."),
        f"Both red: {red}/{n} × {red - 1}/{n - 1} = {red * (red - 1)}/{bottom}.",
        f"Both blue: {blue}/{n} × {blue - 1}/{n - 1} = {blue * (blue - 1)}/{bottom}.",
        *v.wait(f"The second draw is from {n - 1} balls, since nothing is put back. Yes, that is what I used."),
        f"Sum: {top}/{bottom}, and with the common divisor {g} it is {p}/{q}. So p + q = {p + q}.",
        *v.check(
            f"Different colours: 2 × {red} × {blue} / {bottom} = {2 * red * blue}/{bottom}; with {top} it makes 1."
        ),
    ]
    return Trace(question, thoughts, f"$\\frac{{{p}}}{{{q}}}$, so $p+q={p + q}$.", str(p + q))


@family
def change(rng: random.Random, v: Voice) -> Trace:
    total = rng.choice([20, 25, 30, 35, 40, 45])
    rows = [(t, (total - 10 * t) // 5 + 1) for t in range(total // 10 + 1)]
    answer = sum(ways for _, ways in rows)
    thoughts = [
        v.open(f"Coins of 1, 5 and 10 for {total} cents. The ones always fill up, so only fives and tens are chosen."),
        " ".join(f"Tens: {t}. That leaves {total - 10 * t}, so 0 to {w - 1} fives, {w} ways." for t, w in rows),
        f"In sum {' + '.join(str(w) for _, w in rows)} = {answer}.",
        *v.wait("Zero fives counts too, that is why there is one more than the largest number of fives."),
    ]
    question = f"In how many ways can {total} cents be paid with coins of 1, 5 and 10 cents?"
    return Trace(question, thoughts, f"Summing over the number of tens gives {answer}.", str(answer))

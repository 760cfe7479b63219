# ruff: noqa: E501  the lines are sentences
"""Algebra."""

from __future__ import annotations

import math
import random

from .voice import Trace, Voice, family, listed


@family
def linear_pair(rng: random.Random, v: Voice) -> Trace:
    x, y = rng.randint(-9, 12), rng.randint(-9, 12)
    a, b, c, d = (rng.randint(1, 9) for _ in range(4))
    while a * d == b * c:
        d = rng.randint(1, 9)
    e, f = a * x + b * y, c * x + d * y
    det = a * d - b * c
    question = f"Solve {a}x + {b}y = {e} and {c}x + {d}y = {f}. What is x + y?"
    thoughts = [
        v.open("Two equations with two unknowns. I eliminate y."),
        f"Multiply the first by {d} and the second by {b}: {a * d}x + {b * d}y = {e * d} and {b * c}x + {b * d}y = {f * b}.",
        f"Subtracting: {det}x = {e * d - f * b}, so x = {x}.",
        f"Put into the first: {b}y = {e} - {a}·({x}) = {e - a * x}, so y = {y}.",
        *v.check(f"Second equation: {c}·({x}) + {d}·({y}) = {c * x} + ({d * y}) = {f}."),
        f"And x + y = {x + y}.",
    ]
    return Trace(question, thoughts, f"$x={x}$, $y={y}$, so $x+y={x + y}$.", str(x + y))


@family
def quadratic(rng: random.Random, v: Voice) -> Trace:
    r, s = rng.randint(-12, 12), rng.randint(-12, 12)
    b, c = -(r + s), r * s
    question = f"Let r and s be the roots of x² {b:+d}x {c:+d} = 0. Find r² + s²."
    disc = b * b - 4 * c
    thoughts = [
        v.open("I could solve the equation, but the sum and the product of the roots are enough."),
        f"By comparing coefficients r + s = {r + s} and rs = {c}.",
        f"r² + s² = (r + s)² - 2rs = {(r + s) ** 2} - ({2 * c}) = {r * r + s * s}.",
        *v.check(
            f"The discriminant is {b * b} - ({4 * c}) = {disc} = {math.isqrt(disc)}², so the roots are {max(r, s)} and "
            f"{min(r, s)}; squares {max(r, s) ** 2} and {min(r, s) ** 2} add up to {r * r + s * s}."
        ),
    ]
    return Trace(question, thoughts, f"$(r+s)^2-2rs = {r * r + s * s}$.", str(r * r + s * s))


@family
def consecutive(rng: random.Random, v: Voice) -> Trace:
    n, start, step = rng.choice([3, 5, 7]), rng.randint(5, 60), rng.choice([1, 2])
    kind = "consecutive integers" if step == 1 else f"consecutive {'even' if start % 2 == 0 else 'odd'} integers"
    terms = [start + step * i for i in range(n)]
    total, mid = sum(terms), terms[n // 2]
    thoughts = [
        v.open(f"With an odd number of equally spaced terms the middle one is the mean: {total} / {n} = {mid}."),
        f"So the numbers are {listed(terms)}.",
        *v.check(f"{' + '.join(map(str, terms))} = {total}."),
        f"The largest is {terms[-1]}.",
    ]
    return Trace(
        f"The sum of {n} {kind} is {total}. What is the largest of them?",
        thoughts,
        f"The middle term is {mid}, the largest {terms[-1]}.",
        str(terms[-1]),
    )

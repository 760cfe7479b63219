# ruff: noqa: E501  the lines are sentences
"""Geometry."""

from __future__ import annotations

import math
import random

from .voice import Trace, Voice, family


@family
def ladder(rng: random.Random, v: Voice) -> Trace:
    a, b, c = rng.choice([(3, 4, 5), (5, 12, 13), (8, 15, 17), (7, 24, 25), (20, 21, 29), (9, 40, 41)])
    k = rng.randint(1, 4)
    a, b, c = a * k, b * k, c * k
    question = v.one(
        f"A ladder {c} m long leans against a wall; its foot is {a} m from the wall. How high does it reach, in metres?",
        f"A kite flies on a taut line of {c} m. The point on the ground below it is {a} m away. How high is the kite?",
        f"A right triangle has hypotenuse {c} and one leg {a}. Find the other leg.",
    )
    thoughts = [
        v.open(f"There is a right angle, {c} is the longest side, and {a} is one of the short ones."),
        *v.slip(f"√({c}² + {a}²)", f"√({c}² - {a}²)", f"The {c} is the hypotenuse, so the squares are subtracted."),
        f"h² = {c}² - {a}² = {c * c} - {a * a} = {b * b}.",
        f"√{b * b} = {b}, since {b}² = {b * b}.",
        *v.check(f"{a}² + {b}² = {a * a} + {b * b} = {a * a + b * b} = {c}²."),
    ]
    return Trace(question, thoughts, f"$\\sqrt{{{c}^2-{a}^2}} = {b}$.", str(b))


@family
def garden_path(rng: random.Random, v: Voice) -> Trace:
    w, h, d = rng.randint(6, 30), rng.randint(5, 25), rng.randint(1, 3)
    outer, inner = (w + 2 * d) * (h + 2 * d), w * h
    question = (
        f"A rectangular {v.one('garden', 'pool', 'lawn')} measures {w} m by {h} m. A path {d} m wide runs all around "
        "it. What is the area of the path in square metres?"
    )
    thoughts = [
        v.open("The path is what lies between a larger and a smaller rectangle."),
        *v.slip(
            (w + d) * (h + d) - inner, outer - inner, f"The path is on both sides, so each length grows by {2 * d}."
        ),
        f"Outside: ({w} + {2 * d}) × ({h} + {2 * d}) = {w + 2 * d} × {h + 2 * d} = {outer}. Inside: {w} × {h} = {inner}.",
        f"Difference: {outer} - {inner} = {outer - inner}.",
        *v.check(
            f"In pieces: two strips of {w} × {d}, two of {h} × {d} and four corners of {d} × {d}: "
            f"{2 * w * d} + {2 * h * d} + {4 * d * d} = {2 * w * d + 2 * h * d + 4 * d * d}."
        ),
    ]
    return Trace(question, thoughts, f"${outer} - {inner} = {outer - inner}$ square metres.", str(outer - inner))


@family
def polygon(rng: random.Random, v: Voice) -> Trace:
    n = rng.choice([5, 6, 8, 9, 10, 12, 15, 18, 20, 24])
    inner = 180 * (n - 2) // n
    diagonals = n * (n - 3) // 2
    thoughts = [
        v.open(f"Each interior angle is {inner}°, so each exterior angle is 180 - {inner} = {180 - inner}°."),
        f"The exterior angles add up to 360°, therefore n = 360 / {180 - inner} = {n}.",
        f"From each vertex there are {n} - 3 = {n - 3} diagonals; {n} × {n - 3} counts each twice.",
        f"So {n} × {n - 3} / 2 = {diagonals}.",
        *v.check(f"All pairs of vertices minus the sides: C({n}, 2) - {n} = {math.comb(n, 2)} - {n} = {diagonals}."),
    ]
    question = f"Each interior angle of a regular polygon measures {inner} degrees. How many diagonals does it have?"
    return Trace(question, thoughts, f"$n={n}$ and $n(n-3)/2={diagonals}$.", str(diagonals))


@family
def shoelace(rng: random.Random, v: Voice) -> Trace:
    points = [(0, 0), (2 * rng.randint(2, 9), rng.randint(0, 4)), (rng.randint(1, 12), 2 * rng.randint(3, 9))]
    (_, _), (a, b), (c, d) = points
    twice = a * d - c * b
    while twice <= 0 or twice % 2:
        a, b, c, d = 2 * rng.randint(2, 9), rng.randint(0, 4), rng.randint(1, 12), 2 * rng.randint(3, 9)
        twice = a * d - c * b
    question = f"Find the area of the triangle with the vertices (0, 0), ({a}, {b}) and ({c}, {d})."
    thoughts = [
        v.open("One vertex is the origin, so the area is half of |x1·y2 - x2·y1|."),
        f"{a} × {d} - {c} × {b} = {a * d} - {c * b} = {twice}.",
        *v.wait("The formula gives the doubled area, so I must not forget to halve it."),
        f"Half of {twice} is {twice // 2}.",
    ]
    return Trace(question, thoughts, f"$\\tfrac12 |{a}\\cdot{d}-{c}\\cdot{b}| = {twice // 2}$.", str(twice // 2))


@family
def similar(rng: random.Random, v: Voice) -> Trace:
    k, stick, shadow = rng.randint(3, 12), rng.randint(1, 4), rng.randint(1, 5)
    question = (
        f"A pole {stick} m high casts a shadow of {shadow} m. At the same moment a {v.one('tree', 'tower', 'mast')} "
        f"casts a shadow of {shadow * k} m. How high is it in metres?"
    )
    thoughts = [
        v.open("The sun's rays are parallel, so the two triangles are similar."),
        f"The shadows have the ratio {shadow * k} / {shadow} = {k}.",
        f"The heights have the same ratio: {stick} × {k} = {stick * k}.",
        *v.check(f"{stick * k} / {shadow * k} is the same slope as {stick} / {shadow}."),
    ]
    return Trace(question, thoughts, f"${stick} \\cdot {k} = {stick * k}$ metres.", str(stick * k))

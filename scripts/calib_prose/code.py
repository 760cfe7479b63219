# ruff: noqa: E501  the lines are sentences
"""Tracing code by hand."""

from __future__ import annotations

import random

from .voice import Trace, Voice, family, words


def fenced(code: str, language: str = "python") -> str:
    return f"```{language}\n{code}\n```"


@family
def while_loop(rng: random.Random, v: Voice) -> Trace:
    n = rng.randint(6, 30)
    values = [n]
    while values[-1] != 1 and len(values) < 13:
        x = values[-1]
        values.append(x // 2 if x % 2 == 0 else 3 * x + 1)
    limit = len(values) - 1
    code = (
        f"x = {n}\nfor step in range({limit}):\n    if x % 2 == 0:\n        x = x // 2\n    else:\n        x = 3 * x + 1\n"
        "print(x)"
    )
    lines = [
        f"step {i}: x is {x}, {'even, so x becomes ' + str(x // 2) if x % 2 == 0 else 'odd, so x becomes 3*' + str(x) + '+1 = ' + str(3 * x + 1)}"
        for i, x in enumerate(values[:-1])
    ]
    thoughts = [
        v.open(f"x starts at {n}, and the loop runs {limit} times."),
        "\n".join(lines),
        *v.wait(f"range({limit}) goes from 0 to {limit - 1}, so that is {limit} passes. Yes."),
        f"After the loop x is {values[-1]}, and that is printed.",
    ]
    return Trace(
        f"What does this program print?\n\n{fenced(code)}",
        thoughts,
        f"The loop ends with `x = {values[-1]}`.",
        str(values[-1]),
    )


@family
def nested_loop(rng: random.Random, v: Voice) -> Trace:
    n, m = rng.randint(3, 6), rng.randint(2, 4)
    code = f"total = 0\nfor i in range(1, {n + 1}):\n    for j in range(i):\n        if (i + j) % {m} == 0:\n            total += i * j\nprint(total)"
    total, lines = 0, []
    for i in range(1, n + 1):
        hits = [j for j in range(i) if (i + j) % m == 0]
        added = sum(i * j for j in hits)
        total += added
        lines.append(
            f"i = {i}: j from 0 to {i - 1}; the condition holds for j in {hits}, adding {added}; total {total}"
        )
    thoughts = [
        v.open(f"Two loops; only pairs with (i + j) divisible by {m} add something."),
        "\n".join(lines),
        *v.wait("j = 0 adds nothing, because the product is 0, so it does no harm if it is counted."),
        f"So the program prints {total}.",
    ]
    return Trace(f"Trace the code and give the output.\n\n{fenced(code)}", thoughts, f"Output: {total}.", str(total))


@family
def recursion(rng: random.Random, v: Voice) -> Trace:
    a, b, n = rng.randint(1, 4), rng.randint(1, 5), rng.randint(4, 8)
    code = f"def f(n):\n    if n < 2:\n        return n + {a}\n    return f(n - 1) + {b} * f(n - 2)\n\nprint(f({n}))"
    values = [a, 1 + a]
    for _ in range(2, n + 1):
        values.append(values[-1] + b * values[-2])
    lines = [f"f({i}) = {values[i - 1]} + {b}*{values[i - 2]} = {values[i]}" for i in range(2, n + 1)]
    thoughts = [
        v.open("Rather than unfolding the recursion from the top, I build the values from below."),
        f"f(0) = {a} and f(1) = {1 + a}.",
        "\n".join(lines),
        f"The call prints {values[n]}.",
    ]
    return Trace(f"What is printed?\n\n{fenced(code)}", thoughts, f"$f({n}) = {values[n]}$.", str(values[n]))


@family
def list_code(rng: random.Random, v: Voice) -> Trace:
    values = [rng.randint(1, 30) for _ in range(rng.randint(6, 9))]
    k = rng.randint(2, 4)
    kept = [x for x in values if x % k]
    squares = sorted(kept)[::-1][:3]
    answer = sum(squares)
    code = f"values = {values}\nkept = [x for x in values if x % {k}]\ntop = sorted(kept, reverse=True)[:3]\nprint(sum(top))"
    thoughts = [
        v.open(f"The comprehension keeps what is not divisible by {k}, because a remainder of 0 counts as false."),
        f"Dropped are {[x for x in values if x % k == 0]}, so kept = {kept}.",
        f"Sorted from large to small: {sorted(kept, reverse=True)}. The first three are {squares}.",
        f"Their sum is {' + '.join(map(str, squares)) or '0'} = {answer}.",
    ]
    return Trace(
        f"Predict the output of this snippet:\n\n{fenced(code)}",
        thoughts,
        f"`top` is {squares}, the sum {answer}.",
        str(answer),
    )


@family
def counting_code(rng: random.Random, v: Voice) -> Trace:
    word = rng.choice(words("mississippi abracadabra committee bookkeeper parallel assessment tomorrow"))
    counts = {c: word.count(c) for c in dict.fromkeys(word)}
    best = max(counts, key=lambda c: counts[c])
    code = (
        f'const counts = {{}};\nfor (const c of "{word}") {{\n  counts[c] = (counts[c] || 0) + 1;\n}}\n'
        "console.log(Math.max(...Object.values(counts)));"
    )
    thoughts = [
        v.open(f"The loop counts how often each letter of {word!r} occurs."),
        f"Letter by letter: {', '.join(f'{c}: {k}' for c, k in counts.items())}.",
        f"These add up to {sum(counts.values())}, which is the length of the word, so none was missed.",
        f"The largest count is {counts[best]}, of {best!r}.",
    ]
    return Trace(
        f"What does this JavaScript print?\n\n{fenced(code, 'javascript')}",
        thoughts,
        f"The largest count is {counts[best]}.",
        str(counts[best]),
    )

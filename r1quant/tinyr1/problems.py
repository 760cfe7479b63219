"""Short AIME-style integer problems with every step of the solution written out; answers are 0 to 999.

The generator behind the embedded model: its training text, its held-out problems and the reasoning
traces of the bundled calibration set all come from here. Each family is a chain of small exact steps, so one
wrong digit anywhere spoils the answer: that is what makes damage by quantization visible.
It does not know about tokenizers or models.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."


@dataclass(frozen=True)
class ArithmeticProblem:
    """One problem. `steps` is the length of the chain, the lines of `reasoning`."""

    family: str
    question: str
    reasoning: str
    answer: int
    steps: int

    @property
    def prompt(self) -> str:
        """The user turn of R1's protocol: the question, then the instruction."""
        return f"{self.question}\n{INSTRUCTION}"

    @property
    def solution(self) -> str:
        """The assistant turn: the reasoning inside `<think>`, then the boxed answer."""
        return f"<think>\n{self.reasoning}\n</think>\n\n\\boxed{{{self.answer}}}"


def _problem(family: str, question: str, lines: list[str], answer: int) -> ArithmeticProblem:
    return ArithmeticProblem(family, question, "\n".join(lines), answer, len(lines))


def _reduce(value: int, modulus: int) -> tuple[str, int]:
    """The remainder of a value below 10 times the modulus, with the subtraction written out."""
    quotient, rest = divmod(value, modulus)
    return f"{quotient}*{modulus}={quotient * modulus}, {value}-{quotient * modulus}={rest}", rest


def _recurrence(rng: random.Random) -> ArithmeticProblem:
    modulus = rng.randint(20, 99)
    a, b, x = rng.randint(2, 9), rng.randint(1, modulus - 1), rng.randint(2, modulus - 1)
    n = rng.randint(3, 12)
    question = f"Let x_0 = {x} and let x_(n+1) be the remainder when {a}x_n + {b} is divided by {modulus}. Find x_{n}."
    lines = []
    for i in range(1, n + 1):
        text, rest = _reduce(a * x + b, modulus)
        lines.append(f"x_{i}: {a}*{x}={a * x}, {a * x}+{b}={a * x + b}, {text}")
        x = rest
    return _problem("recurrence", question, lines, x)


def _power(rng: random.Random) -> ArithmeticProblem:
    modulus, a, n = rng.randint(20, 99), rng.randint(3, 9), rng.randint(4, 14)
    lines, r = [], a
    for i in range(2, n + 1):
        text, rest = _reduce(a * r, modulus)
        lines.append(f"{a}^{i}: {a}*{r}={a * r}, {text}")
        r = rest
    return _problem("power", f"Find the remainder when {a}^{n} is divided by {modulus}.", lines, r)


def _running_sum(rng: random.Random) -> ArithmeticProblem:
    total = rng.randint(10, 99)
    terms, lines = str(total), []
    for _ in range(rng.randint(5, 18)):
        term = rng.randint(10, 199)
        sign = "+" if total + term < 1000 and (total < term or rng.random() < 0.6) else "-"
        after = total + term if sign == "+" else total - term
        lines.append(f"{total}{sign}{term}={after}")
        terms += f" {sign} {term}"
        total = after
    return _problem("running sum", f"Compute {terms}.", lines, total)


def _two_term_sequence(rng: random.Random) -> ArithmeticProblem:
    a, b, n = rng.randint(2, 99), rng.randint(2, 99), rng.randint(6, 18)
    question = (
        f"Let s_1 = {a}, s_2 = {b} and s_(n+2) = s_(n+1) + s_n. Find the remainder when s_{n} is divided by 1000."
    )
    lines = []
    for i in range(3, n + 1):
        total = a + b
        lines.append(f"s_{i}: {b}+{a}={total}" + (f", {total}-1000={total - 1000}" if total > 999 else ""))
        a, b = b, total % 1000
    return _problem("two-term sequence", question, lines, b)


def _series(rng: random.Random) -> ArithmeticProblem:
    term, difference, n = rng.randint(2, 30), rng.randint(2, 9), rng.randint(5, 12)
    question = (
        f"An arithmetic sequence has first term {term} and common difference {difference}. "
        f"Find the sum of its first {n} terms."
    )
    lines, total = [], term
    for _ in range(2, n + 1):
        lines.append(
            f"{term}+{difference}={term + difference}, {total}+{term + difference}={total + term + difference}"
        )
        term += difference
        total += term
    return _problem("arithmetic series", question, lines, total)


_NOT_FIVES = [n for n in range(11, 100) if n % 5]  # a factor 5 beside even ones soon leaves only zeros


def _product(rng: random.Random) -> ArithmeticProblem:
    factors = [rng.choice(_NOT_FIVES)] + [rng.choice((2, 3, 4, 6, 7, 8, 9)) for _ in range(rng.randint(3, 10))]
    question = f"Find the remainder when {'*'.join(map(str, factors))} is divided by 1000."
    lines, r = [], factors[0]
    for factor in factors[1:]:
        carry, parts = 0, []
        for digit in reversed(str(r)):
            value = int(digit) * factor + carry
            parts.append(f"{digit}*{factor}" + (f"+{carry}" if carry else "") + f"={value}")
            carry = value // 10
        lines.append(f"{r}*{factor}: {', '.join(parts)}, {r * factor}, {r * factor % 1000}")
        r = r * factor % 1000
    return _problem("product", question, lines, r)


def _gcd(rng: random.Random) -> ArithmeticProblem:
    small, large = 0, rng.choice([1, 1, 2, 3, 4, 6, 7, 9, 12, 15])
    answer = large
    while True:
        small, large = large, large * rng.randint(1 if small else 2, 4) + small
        if large > 300 and (large > 999 or rng.random() < 0.3):
            break
    if large > 999:
        large, small = small, large % small
    a, b, lines = large, small, []
    while b:
        lines.append(f"{a // b}*{b}={a // b * b}, {a}-{a // b * b}={a % b}")
        a, b = b, a % b
    return _problem("gcd", f"Find the greatest common divisor of {large} and {small}.", lines, answer)


FAMILIES: tuple[Callable[[random.Random], ArithmeticProblem], ...] = (
    _recurrence,
    _power,
    _running_sum,
    _two_term_sequence,
    _series,
    _product,
    _gcd,
)


def problems(seed: int, exclude: frozenset[str] = frozenset()) -> Iterator[ArithmeticProblem]:
    """An endless stream of problems; the same seed gives the same stream. Questions in `exclude` are left out."""
    rng = random.Random(seed)
    while True:
        problem = rng.choice(FAMILIES)(rng)
        if 0 <= problem.answer <= 999 and problem.question not in exclude:
            yield problem

"""Number theory."""

from __future__ import annotations

import math
import random

from .voice import Trace, Voice, family, listed


def factored(n: int) -> list[tuple[int, int]]:
    found, p = [], 2
    while n > 1:
        e = 0
        while n % p == 0:
            n, e = n // p, e + 1
        if e:
            found.append((p, e))
        p += 1
    return found


def powers(parts: list[tuple[int, int]]) -> str:
    return " × ".join(f"{p}^{e}" if e > 1 else str(p) for p, e in parts)


@family
def divisors(rng: random.Random, v: Voice) -> Trace:
    n = rng.choice([60, 72, 84, 90, 96, 108, 120, 126, 140, 144, 150, 168, 180, 196, 200, 210, 216, 225, 240, 252, 300])
    parts = factored(n)
    answer = math.prod(e + 1 for _, e in parts)
    question = v.one(
        f"How many positive divisors does {n} have?",
        f"In how many ways can {n} be written as a·b with positive integers a and b, where the order counts?",
    )
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    thoughts = [
        v.open(f"The number of divisors follows from the prime factorization of {n}."),
        f"{n} = {powers(parts)}.",
        f"Each divisor chooses an exponent for each prime, so multiply the exponents plus one: "
        f"{' × '.join(f'({e}+1)' for _, e in parts)} = {answer}.",
        *v.check(
            f"Divisors up to √{n}: {listed(small)}. That is {len(small)} of them, and each pairs with a larger one"
            + (", except the root itself." if math.isqrt(n) ** 2 == n else f", so 2 × {len(small)} = {answer}.")
        ),
    ]
    return Trace(question, thoughts, f"{n} = {powers(parts)}, so there are {answer}.", str(answer))


@family
def last_digit(rng: random.Random, v: Voice) -> Trace:
    base, exponent = rng.choice([2, 3, 7, 8, 12, 13, 17, 18, 23, 27]), rng.randint(20, 400)
    cycle = [pow(base, i, 10) for i in range(1, 5)]
    rest = exponent % 4
    answer = pow(base, exponent, 10)
    question = f"What is the last digit of {base}^{exponent}?"
    thoughts = [
        v.open("Only the last digit matters, so I can work modulo 10."),
        f"The last digits of the powers of {base} are {listed(cycle)}, and then they repeat: a cycle of length 4.",
        f"{exponent} = 4 × {exponent // 4} + {rest}, so the exponent leaves the remainder {rest}.",
        *v.wait("When the remainder is 0 it is the last entry of the cycle, not the first."),
        f"So the digit is entry number {rest or 4} of the cycle, which is {answer}.",
        *v.check(f"{base}^4 ends in {cycle[3]}, and {base}^{rest or 4} ends in {cycle[(rest or 4) - 1]}."),
    ]
    return Trace(
        question,
        thoughts,
        f"The last digits repeat with period 4 and ${exponent} \\equiv {rest} \\pmod 4$.",
        str(answer),
    )


@family
def meeting(rng: random.Random, v: Voice) -> Trace:
    a, b = rng.sample([6, 8, 9, 10, 12, 14, 15, 16, 18, 20, 24], 2)
    g, answer = math.gcd(a, b), math.lcm(a, b)
    question = v.one(
        f"Two buses leave the station together at noon. One leaves every {a} minutes, the other every {b}. "
        "After how many minutes do they next leave together?",
        f"A red lamp blinks every {a} seconds and a green one every {b}. They blink together now. "
        "In how many seconds will they blink together again?",
    )
    thoughts = [
        v.open(f"They coincide at common multiples of {a} and {b}, so I need the least common multiple."),
        f"{a} = {powers(factored(a))} and {b} = {powers(factored(b))}.",
        *v.slip(a * b, answer, f"{a} × {b} = {a * b} is a common multiple, but the two share the factor {g}."),
        f"lcm = {a} × {b} / gcd = {a * b} / {g} = {answer}.",
        *v.check(f"{answer} / {a} = {answer // a} and {answer} / {b} = {answer // b}, both whole and coprime."),
    ]
    return Trace(question, thoughts, f"$\\operatorname{{lcm}}({a}, {b}) = {answer}$.", str(answer))


@family
def two_remainders(rng: random.Random, v: Voice) -> Trace:
    m, n = rng.choice([(5, 7), (7, 9), (8, 9), (7, 11), (5, 11), (9, 11), (7, 13), (4, 15)])
    r, s = rng.randrange(1, m), rng.randrange(1, n)
    answer = next(x for x in range(m * n) if x % m == r and x % n == s)
    tried = list(range(s, answer + 1, n))
    question = (
        f"Find the smallest positive integer that leaves remainder {r} when divided by {m} and {s} when divided by {n}."
    )
    walk = ", ".join(f"{x} leaves {x % m}" for x in tried)
    thoughts = [
        v.open(f"Numbers that leave {s} on division by {n} are {s}, {s + n}, {s + 2 * n} and so on."),
        f"I go through them and look at the remainder by {m}: {walk}.",
        f"The first with remainder {r} is {answer}.",
        *v.check(f"{answer} = {m} × {answer // m} + {r} and {answer} = {n} × {answer // n} + {s}."),
        f"Since {m} and {n} are coprime there is exactly one such number below {m * n}.",
    ]
    return Trace(
        question, thoughts, f"${answer} = {m}\\cdot{answer // m}+{r} = {n}\\cdot{answer // n}+{s}$.", str(answer)
    )


@family
def trailing_zeros(rng: random.Random, v: Voice) -> Trace:
    n = rng.randint(20, 400)
    terms = [(5**k, n // 5**k) for k in range(1, 5) if n // 5**k]
    answer = sum(t for _, t in terms)
    thoughts = [
        v.open(
            "Each zero at the end needs a factor 10, that is a 2 and a 5. There are plenty of twos, so count fives."
        ),
        " ".join(f"Multiples of {p} up to {n}: {t}." for p, t in terms),
        *v.slip(n // 5, answer, "A multiple of 25 brings two fives, so higher powers count again."),
        f"In total {' + '.join(str(t) for _, t in terms)} = {answer}.",
    ]
    return Trace(
        f"How many zeros are at the end of {n}! (factorial)?",
        thoughts,
        f"The number of fives in ${n}!$ is {answer}.",
        str(answer),
    )


@family
def digit_sum(rng: random.Random, v: Voice) -> Trace:
    total = rng.randint(4, 15)
    pairs = [(a, total - a) for a in range(1, 10) if 0 <= total - a <= 9]
    thoughts = [
        v.open(f"Two digits a and b with a + b = {total}, where a is at least 1."),
        f"For each a the other digit is fixed: {', '.join(f'{a}{b}' for a, b in pairs)}.",
        *v.wait("The first digit cannot be 0, otherwise it is not a two-digit number, and b must not exceed 9."),
        f"That makes {len(pairs)} numbers.",
    ]
    question = f"How many two-digit numbers have the digit sum {total}?"
    return Trace(question, thoughts, f"Listing them gives {len(pairs)} numbers.", str(len(pairs)))

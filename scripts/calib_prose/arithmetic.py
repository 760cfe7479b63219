"""Arithmetic in small stories."""

from __future__ import annotations

import random

from .voice import NAMES, THINGS, Trace, Voice, family


@family
def shopping(rng: random.Random, v: Voice) -> Trace:
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    count, price, off = rng.randint(4, 30), rng.randint(2, 25), rng.choice([5, 10, 20, 25, 40])
    full = count * price
    while full * off % 100:
        count += 1
        full = count * price
    cut = full * off // 100
    paid = full - cut
    note = paid + rng.randint(1, 60)
    question = v.one(
        f"{name} buys {count} {thing} at ${price} each, gets {off}% off, and pays with ${note}. What is the change?",
        f"A shop sells {thing} for ${price} apiece. {name} takes {count} of them with a voucher for {off}% off the "
        f"total and hands over ${note}. How many dollars come back?",
    )
    thoughts = [
        v.open(f"{name} buys {count} items at {price} dollars, then there is a discount of {off} percent."),
        f"The full price is {count} × {price} = {full} dollars.",
        *v.slip(full - off, paid, f"I subtracted {off} dollars, but the discount is {off} percent of {full}."),
        f"{off}% of {full} is {full} × {off} / 100 = {cut}, so {name} pays {full} - {cut} = {paid} dollars.",
        f"The change is {note} - {paid} = {note - paid}.",
        *v.check(f"{paid} + {note - paid} = {paid + note - paid}, which is the amount handed over."),
    ]
    summary = f"Full price: ${full}. Discount: ${cut}. Paid: ${paid}. Change: ${note} - ${paid} = ${note - paid}."
    return Trace(question, thoughts, summary.replace("$", "\\$"), str(note - paid))


@family
def trip(rng: random.Random, v: Voice) -> Trace:
    speed, hours, rest = rng.choice([48, 60, 72, 80, 90, 96]), rng.randint(2, 6), rng.choice([10, 15, 20, 25, 30, 45])
    start, extra = rng.randint(5, 13), rng.choice([15, 20, 30, 40, 45])
    while speed * extra % 60:
        extra = rng.choice([15, 20, 30, 40, 45])
    distance = speed * hours + speed * extra // 60
    driving = hours * 60 + extra
    end = start * 60 + driving + rest
    clock = f"{end // 60}:{end % 60:02d}"
    question = v.one(
        f"A bus leaves at {start}:00 and covers {distance} km at {speed} km/h, with one stop of {rest} minutes. "
        "At what time does it arrive?",
        f"{rng.choice(NAMES)} sets out at {start}:00, drives {distance} kilometres at a steady {speed} kilometres per "
        f"hour and takes a break of {rest} minutes. When does the journey end?",
    )
    thoughts = [
        v.open(f"Distance {distance} km, speed {speed} km/h, and a pause of {rest} minutes on top."),
        f"Time on the road is distance over speed: {distance} / {speed} hours. In minutes that is "
        f"{distance} × 60 / {speed} = {driving} minutes.",
        f"{driving} minutes is {driving // 60} h {driving % 60} min.",
        *v.wait(f"The pause has to be added as well: {driving} + {rest} = {driving + rest} minutes."),
        f"From {start}:00, adding {(driving + rest) // 60} h {(driving + rest) % 60} min leads to {clock}.",
        *v.check(f"{speed} km/h for {driving} minutes is {speed} × {driving} / 60 = {distance} km."),
    ]
    return Trace(
        question, thoughts, f"Driving takes {driving} min and the pause {rest} min, so arrival is at {clock}.", clock
    )


@family
def average(rng: random.Random, v: Voice) -> Trace:
    name, n = rng.choice(NAMES), rng.randint(4, 7)
    mean = rng.randint(60, 80)
    wish = mean + rng.randint(1, 3)
    need = wish * (n + 1) - mean * n
    question = v.one(
        f"{name} has an average of {mean} points over {n} tests. What must the next score be for the average of all "
        f"{n + 1} tests to be {wish}?",
        f"After {n} quizzes {name}'s mean score is {mean}. Which score on the next quiz lifts the mean to {wish}?",
    )
    thoughts = [
        v.open(f"An average of {mean} over {n} tests means a total of {n} × {mean} = {n * mean}."),
        f"For {n + 1} tests with average {wish} the total has to be {n + 1} × {wish} = {(n + 1) * wish}.",
        *v.slip(wish, need, "One test at the wished average does not lift the old ones; totals have to be compared."),
        f"The difference is {(n + 1) * wish} - {n * mean} = {need}.",
        *v.check(f"({n * mean} + {need}) / {n + 1} = {n * mean + need} / {n + 1} = {wish}."),
    ]
    return Trace(question, thoughts, f"Needed: ${n + 1} \\cdot {wish} - {n} \\cdot {mean} = {need}$.", str(need))


@family
def ages(rng: random.Random, v: Voice) -> Trace:
    a, b = rng.sample(NAMES, 2)
    young, k, years = rng.randint(5, 14), rng.randint(3, 4), rng.randint(2, 8)
    old = k * young
    total = old + young + 2 * years
    question = v.one(
        f"{a} is {k} times as old as {b}. In {years} years their ages will add up to {total}. How old is {a} now?",
        f"Today {a}'s age is {k} times {b}'s. {years} years from now the sum of their ages is {total}. Find {a}'s age.",
    )
    thoughts = [
        v.open(f"Let {b} be x years old now, so {a} is {k}x."),
        f"In {years} years they are x + {years} and {k}x + {years}. The sum is {k + 1}x + {2 * years} = {total}.",
        *v.wait(f"Both of them get older, so it is 2 × {years} = {2 * years} that is added, not {years}."),
        f"Then {k + 1}x = {total - 2 * years}, so x = {young}, and {a} is {k} × {young} = {old}.",
        *v.check(f"In {years} years: {young + years} and {old + years}, together {total}."),
    ]
    return Trace(question, thoughts, f"$x = {young}$, so {a} is ${k} \\cdot {young} = {old}$ years old.", str(old))


@family
def work_rate(rng: random.Random, v: Voice) -> Trace:
    a, b = rng.choice([(3, 6), (4, 12), (6, 12), (10, 15), (12, 24), (20, 30), (6, 3), (30, 20), (15, 30)])
    together = a * b // (a + b)
    thing = v.one("fill a tank", "paint a fence", "unload a ship", "copy an archive")
    question = (
        f"One {v.one('crew', 'machine', 'pump')} needs {a} hours to {thing}, another needs {b} hours. "
        "How many hours do they need together?"
    )
    thoughts = [
        v.open(f"The first does 1/{a} of the job in an hour and the second 1/{b}."),
        *v.slip((a + b) // 2, together, "Averaging the times makes no sense, since two together must be faster."),
        f"Together they do 1/{a} + 1/{b} = ({b} + {a}) / {a * b} = {a + b}/{a * b} = 1/{together} per hour.",
        f"So the whole job takes {together} hours.",
        *v.check(f"In {together} hours: {together}/{a} + {together}/{b} = 1."),
    ]
    return Trace(question, thoughts, f"$\\frac1{{{a}}}+\\frac1{{{b}}}=\\frac1{{{together}}}$.", str(together))


@family
def mixture(rng: random.Random, v: Voice) -> Trace:
    p, q = rng.choice([10, 20, 30]), rng.choice([50, 60, 70])
    x, y = rng.randint(2, 9), rng.randint(2, 9)
    while (p * x + q * y) % (x + y):
        x, y = rng.randint(2, 9), rng.randint(2, 9)
    result = (p * x + q * y) // (x + y)
    what = v.one("salt solution", "syrup", "alcohol", "acid")
    question = f"{x} litres of a {p}% {what} are mixed with {y} litres of a {q}% one. What percentage has the mixture?"
    thoughts = [
        v.open(f"I need how much pure substance there is and how much liquid: {x} + {y} = {x + y} litres."),
        f"From the first: {x} × {p}% is {x * p} hundredths of a litre. From the second: {y} × {q}% is {y * q}.",
        f"In sum {x * p + y * q} hundredths in {x + y} litres, and {x * p + y * q} / {x + y} = {result}.",
        *v.check(f"The result has to lie between {p} and {q}, nearer to the larger part; {result} does."),
    ]
    return Trace(question, thoughts, f"$({x}\\cdot{p}+{y}\\cdot{q})/({x}+{y})={result}$ percent.", str(result))

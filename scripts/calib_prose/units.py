# ruff: noqa: E501  the lines are sentences
"""Conversion of units."""

from __future__ import annotations

import random

from .voice import Trace, Voice, family


@family
def speed_units(rng: random.Random, v: Voice) -> Trace:
    ms, seconds = rng.choice([5, 10, 15, 20, 25, 30]), rng.choice([12, 20, 36, 45, 50, 80])
    kmh = ms * 18 // 5
    question = f"A {v.one('train', 'car', 'horse', 'drone')} moves at {kmh} km/h. How many metres does it cover in {seconds} seconds?"
    thoughts = [
        v.open("The speed is in kilometres per hour and the time in seconds, so units have to be made equal."),
        f"{kmh} km/h = {kmh} × 1000 m / 3600 s = {kmh} / 3.6 m/s = {ms} m/s.",
        f"In {seconds} s: {ms} × {seconds} = {ms * seconds} m.",
        *v.check(f"In an hour, {ms} m/s make {ms} × 3600 = {ms * 3600} m, that is {kmh} km."),
    ]
    return Trace(
        question,
        thoughts,
        f"${ms}\\,\\mathrm{{m/s}} \\cdot {seconds}\\,\\mathrm{{s}} = {ms * seconds}\\,\\mathrm{{m}}$.",
        str(ms * seconds),
    )


@family
def storage_units(rng: random.Random, v: Voice) -> Trace:
    rate, minutes = rng.choice([2, 4, 6, 8, 12, 16, 24]), rng.randint(5, 90)
    mb = rate * minutes * 60 / 8
    question = f"A recording uses {rate} megabits per second. How many megabytes are {minutes} minutes of it?"
    answer = f"{mb:g}"
    thoughts = [
        v.open("Bits and bytes: one byte has 8 bits. And minutes have to become seconds."),
        f"{minutes} minutes = {minutes * 60} seconds. At {rate} Mbit/s that is {rate * minutes * 60} Mbit.",
        *v.slip(rate * minutes * 60, answer, "That is still in megabits; the question asks for megabytes."),
        f"Divide by 8: {rate * minutes * 60} / 8 = {answer} MB.",
    ]
    return Trace(question, thoughts, f"${rate}\\cdot{minutes * 60}/8 = {answer}$ megabytes.", answer)


@family
def recipe_units(rng: random.Random, v: Voice) -> Trace:
    people, wanted = rng.choice([2, 4, 6]), rng.choice([3, 5, 8, 10, 12, 15])
    item, grams = (
        rng.choice(["flour", "rice", "lentils", "sugar", "potatoes"]),
        rng.choice([120, 180, 240, 300, 360, 480]),
    )
    total = grams * wanted // people
    question = (
        f"A recipe for {people} people takes {grams} g of {item}. How many kilograms are needed for {wanted} people?"
    )
    answer = f"{total / 1000:g}"
    thoughts = [
        v.open("First the amount for one person, then for all, and at the end kilograms instead of grams."),
        f"One person: {grams} / {people} = {grams // people} g. For {wanted}: {grams // people} × {wanted} = {total} g.",
        f"{total} g are {answer} kg.",
        *v.check(f"In one go it is {grams} × {wanted} / {people} = {grams * wanted} / {people} = {total}."),
    ]
    return Trace(question, thoughts, f"{total} g = {answer} kg.", answer)


@family
def temperature(rng: random.Random, v: Voice) -> Trace:
    c = 5 * rng.randint(-4, 20)
    f = c * 9 // 5 + 32
    to_f = rng.random() < 0.5
    if to_f:
        body = [f"F = C × 9/5 + 32. So {c} × 9/5 = {c * 9 // 5}, and {c * 9 // 5} + 32 = {f}."]
        question, answer = f"Convert {c} degrees Celsius to Fahrenheit.", f
    else:
        body = [f"C = (F - 32) × 5/9. So {f} - 32 = {f - 32}, and {f - 32} × 5 / 9 = {c}."]
        question, answer = f"A thermometer shows {f} °F. What is that in °C?", c
    thoughts = [
        v.open("The two scales differ in their zero and in the size of a degree."),
        *body,
        *v.wait("The 32 has to be dealt with on the Fahrenheit side. That is how I did it."),
        *v.check(f"Water freezes at 0 °C = 32 °F and boils at 100 °C = 212 °F; {c} °C and {f} °F fit on that line."),
    ]
    return Trace(question, thoughts, f"{c} °C = {f} °F.", str(answer))

# ruff: noqa: E501  the lines are sentences
"""The same kind of thinking in Chinese, German, French and Spanish."""

from __future__ import annotations

import random

from .voice import NAMES, Trace, Voice, family


@family
def chinese(rng: random.Random, v: Voice) -> Trace:
    heads, rabbits = rng.randint(15, 60), rng.randint(3, 14)
    legs = 2 * heads + 2 * rabbits
    question = (
        f"笼子里有鸡和兔共{heads}只，共有{legs}条腿。兔子有多少只？请一步一步推理，并把最终答案写在 \\boxed{{}} 中。"
    )
    thoughts = [
        v.one("好的，我先把题目里的条件列出来。", "嗯，这是一道鸡兔同笼的问题。", "首先，让我理解一下题意。"),
        f"一共有{heads}只动物，{legs}条腿。鸡有2条腿，兔有4条腿。",
        f"假设全部都是鸡，那么应该有 {heads}×2={2 * heads} 条腿。",
        f"实际多出了 {legs}-{2 * heads}={legs - 2 * heads} 条腿，每只兔子比鸡多2条腿，所以兔子有 {legs - 2 * heads}÷2={rabbits} 只。",
        v.one("等一下，我再检查一遍。", "让我验算一下。")
        + f"兔{rabbits}只，鸡{heads - rabbits}只，腿数 {rabbits}×4+{heads - rabbits}×2={legs}，正确。",
    ]
    return Trace(question, thoughts, f"兔子有{rabbits}只，鸡有{heads - rabbits}只。", str(rabbits), False)


@family
def german(rng: random.Random, v: Voice) -> Trace:
    price, percent = rng.choice([40, 60, 80, 120, 150, 200, 250]), rng.choice([10, 20, 25, 30, 40])
    up = price * (100 + percent) // 100 if price * percent % 100 == 0 else price + percent
    if price * percent % 100:
        price, percent, up = 200, 25, 250
    question = f"Ein Fahrradhelm kostet {price} Euro. Der Preis steigt um {percent} %. Wie viel kostet er danach?"
    thoughts = [
        v.one("Also, was ist gegeben?", "Gut, der Reihe nach.", "Lass mich kurz überlegen."),
        f"{percent} % von {price} Euro sind {price} · {percent} / 100 = {up - price} Euro.",
        f"Der neue Preis ist {price} + {up - price} = {up} Euro.",
        v.one("Moment, ich prüfe das noch einmal.", "Zur Probe:") + f" {up} / {price} = {up / price:g}, das passt.",
    ]
    return Trace(question, thoughts, f"Der Helm kostet danach {up} Euro.", str(up), False)


@family
def french(rng: random.Random, v: Voice) -> Trace:
    rows, seats, free = rng.randint(8, 25), rng.randint(10, 30), rng.randint(5, 60)
    answer = rows * seats - free
    question = f"Une salle a {rows} rangées de {seats} places. Il reste {free} places libres. Combien de spectateurs y a-t-il ?"
    thoughts = [
        v.one("Voyons.", "D'accord, commençons par le nombre total de places.", "Je relis l'énoncé."),
        f"Au total il y a {rows} × {seats} = {rows * seats} places.",
        f"Les places occupées : {rows * seats} - {free} = {answer}.",
        v.one("Attendons, je vérifie :", "Vérification :") + f" {answer} + {free} = {rows * seats}. C'est correct.",
    ]
    return Trace(question, thoughts, f"Il y a {answer} spectateurs.", str(answer), False)


@family
def spanish(rng: random.Random, v: Voice) -> Trace:
    boxes, each, given = rng.randint(5, 20), rng.randint(6, 24), rng.randint(10, 25)
    left = boxes * each - given
    question = (
        f"{rng.choice(NAMES)} tiene {boxes} cajas con {each} naranjas cada una y regala {given}. ¿Cuántas le quedan?"
    )
    thoughts = [
        v.one("Vamos a ver.", "Primero, los datos.", "Leo otra vez el problema."),
        f"En total había {boxes} × {each} = {boxes * each} naranjas.",
        f"Después de regalar {given}, quedan {boxes * each} - {given} = {left}.",
        v.one("Espera, lo compruebo:", "Comprobación:") + f" {left} + {given} = {boxes * each}. Está bien.",
    ]
    return Trace(question, thoughts, f"Le quedan {left} naranjas.", str(left), False)

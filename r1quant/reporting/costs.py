"""The sections on what a model costs: memory, tokens a second, which cards hold it; and predictions beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from r1quant.reporting.document import Chart, Section, Series, Table
from r1quant.reporting.formatting import NONE, figure, nbytes, percent, seconds, tokens
from r1quant.reporting.quality import looks

Told = Mapping[str, Any]
LAYERS = (("weights", "weights_bytes"), ("cache", "kv_bytes"), ("activations", "activations_bytes"),
          ("runtime", "runtime_bytes"))  # fmt: skip
UNIT = {"bytes": nbytes, "seconds": seconds, "nats": figure}


def memory(hardware: Told | None, chosen: str | None) -> Section:
    """Charts of the baseline, which comes first, and of the variant that is recommended; all are in the table."""
    title = "Memory against context"
    if not hardware or not hardware["memory"]:
        return Section("memory", title, ("No record says what the model's sizes are, so its memory was not modelled: "
                                         "give the output folder, or what `quantize --record` wrote.",))  # fmt: skip
    found = hardware["memory"]
    top = max(max(_totals(side)) for side in found["sides"])
    usable = found["usable_bytes"]
    top = 1.08 * (usable if top < usable < 2.5 * top else top) / 1e9
    drawn = [side for i, side in enumerate(found["sides"]) if i == 0 or side["name"] == chosen]
    charts = tuple(_stack(side, found, top, i) for i, side in enumerate(drawn))
    parts = ("weights_bytes", "kv_bytes_per_token", "activations_bytes", "runtime_bytes")
    rows = tuple(
        (
            side["name"],
            *(nbytes(_last(side[part]) or None) for part in parts),
            nbytes(_totals(side)[-1]),
            tokens(side["max_context"]),
        )
        for side in found["sides"]
    )
    head = ("model", "weights", "cache a token", "activations", "runtime", f"at {tokens(found['contexts'][-1])} tokens",
            "longest context that fits")  # fmt: skip
    said = (
        f"Modelled, not measured, on {found['card']} ({nbytes(found['memory_bytes'])}, of which a runtime fills "
        f"{nbytes(found['usable_bytes'])}), one text at a time with a 16-bit cache.",
    )
    return Section("memory", title, said, charts, (Table("What takes the memory", head, rows),))


def _totals(side: Told) -> list[float]:
    fixed = side["weights_bytes"] + side["runtime_bytes"]
    return [fixed + cache + active for cache, active in zip(side["kv_bytes"], side["activations_bytes"], strict=True)]


def _last(value: float | Sequence[float]) -> float:
    """What is at the longest context."""
    return value[-1] if isinstance(value, Sequence) else value


def _stack(side: Told, found: Told, top: float, index: int) -> Chart:
    x = found["contexts"]
    series = []
    for look, (label, key) in enumerate(LAYERS):
        value = side[key]
        y = [one / 1e9 for one in value] if isinstance(value, list) else [value / 1e9] * len(x)
        if any(y):
            series.append(Series(label, x, y, look))
    usable = found["usable_bytes"] / 1e9
    limit = (usable, f"{found['card']}: {usable:.1f} GB usable") if usable <= top else None
    alt = ", ".join(f"{one.label} {figure(one.y[-1])} GB" for one in series) + f" at {tokens(x[-1])} tokens of context"
    return Chart(f"memory-{index}", f"Memory: {side['name']}", alt, "stack", "context (tokens)", "GB",
                 tuple(series), limit=limit, top=top)  # fmt: skip


def speed(told: Sequence[Told]) -> Section:
    title, timed = "Tokens a second", [each for each in told if each["speed"]]
    if not timed:
        return Section("speed", title, ("Nothing was timed: `r1quant bench OUT --record FILE` does.",))
    head = ("load", "model", "prefill tok/s", "decode tok/s", "first token", "peak memory", "ran in")
    rows, modelled = [], []
    for each in timed:
        for row in each["speed"]:
            load = load_of(row)
            rows += [
                (load, side if side == "baseline" else each["name"], *_figures(row[side]))
                for side in ("baseline", "quantized")
                if row[side] is not None
            ]
            modelled += _modelled(load, each["name"], row["reference"])
    tables = [Table("Measured: median, smallest to largest", head, tuple(dict.fromkeys(rows)))]
    if modelled:
        caption = "On a card of 40 GB"
        names = ("load", "model", "prefill tok/s", "decode tok/s", "first token", "memory", "source")
        tables.append(Table(caption, names, tuple(dict.fromkeys(modelled))))
    chart = _decode_chart(timed, looks(told))
    said = (
        "A load is the tokens of a prompt + new tokens, times texts at the same time."
        " Models took turns on one machine.",
    )
    return Section("speed", title, said, (chart,) if chart else (), tuple(tables))


def load_of(row: Told) -> str:
    return f"({tokens(row['prompt_tokens'])} + {tokens(row['new_tokens'])}) × {tokens(row['batch'])}"


def _figures(side: Told) -> tuple[str, ...]:
    spreads = []
    for key in ("prefill_tokens_per_second", "decode_tokens_per_second"):
        spread = side[key]
        spreads.append(
            f"{figure(spread['median'])} ({figure(spread['min'])} to {figure(spread['max'])})" if spread else NONE
        )
    first = side["ttft_seconds"]
    memory_of = " ".join(filter(None, (nbytes(side["peak_memory_bytes"]), side["memory"])))
    return (*spreads, seconds(first["median"] if first else None), memory_of, side["where"])


def _modelled(load: str, name: str, reference: Told) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for side, title in (("baseline", "16-bit baseline"), ("quantized", name)):
        part = reference[side]
        if part["decode_tokens_per_second"] is not None:
            speeds = (figure(part["prefill_tokens_per_second"]), figure(part["decode_tokens_per_second"]))
            source = f"{reference['source'] or 'unknown'}, {reference['card'] or 'unknown card'}"
            found.append((load, title, *speeds, seconds(part["ttft_seconds"]), nbytes(part["total_bytes"]), source))
    return found


def _decode_chart(timed: Sequence[Told], look: Mapping[str, int]) -> Chart | None:
    ticks = tuple(dict.fromkeys(load_of(row) for each in timed for row in each["speed"]))[:6]
    series = []
    for each, side in [(timed[0], "baseline"), *((each, "quantized") for each in timed)]:
        points = {}
        for row in each["speed"]:
            spread = (row[side] or {}).get("decode_tokens_per_second")
            if spread and load_of(row) in ticks:
                points[ticks.index(load_of(row))] = spread
        if points:
            x = sorted(points)
            y, low, high = ([points[i][key] for i in x] for key in ("median", "min", "max"))
            name = "baseline" if side == "baseline" else each["name"]
            series.append(Series(name, x, y, 0 if side == "baseline" else look[each["name"]], low, high))
    if not series:
        return None
    alt = "; ".join(f"{one.label}: {figure(one.y[0])} tokens a second" for one in series)
    return Chart(
        "decode", "Decoding speed, measured", alt, "bars", "load", "tokens a second", tuple(series), ticks=ticks
    )


def fits(hardware: Told | None) -> Section:
    title = "What it runs on"
    if not hardware or not hardware["rows"]:
        return Section("fits", title, ("No record says what the model's sizes are, so no cards were looked up.",))
    names, cards = hardware["names"], list(dict.fromkeys(row["card"] for row in hardware["rows"]))
    cells = {(row["card"], row["name"]): row for row in hardware["rows"]}
    rows = []
    for card in cards:
        found = [cells[card, name] for name in names]
        rows.append((card, nbytes(found[0]["memory_bytes"]), *map(_fit, found)))
    said = (
        f"Modelled at {tokens(hardware['context'])} tokens of context, one text at a time: the longest context that "
        "fits, and tokens a second when writing.",
    )
    return Section("fits", title, said, (), (Table("Cards", ("card", "memory", *names), tuple(rows)),))


def _fit(row: Told) -> str:
    if not row["fits"]:
        return f"does not fit: needs {nbytes(row['total_bytes'])}"
    return f"{tokens(row['max_context'])}; {figure(row['decode_tokens_per_second'])} tok/s"


def predicted(told: Sequence[Told]) -> Section:
    title = "Predicted and measured"
    rows = []
    for each in told:
        for found in each["predictions"]:
            shown, a, b = UNIT[found["unit"]], found["predicted"], found["measured"]
            rows.append((each["name"], found["what"], shown(a), shown(b), percent(a / b - 1, "+") if b else NONE))
    if not rows:
        missing = (
            "No record holds a prediction beside what came of it: `quantize --record FILE` writes the plan's, "
            "`quantize --guided` predicts the KL divergence."
        )
        return Section("predicted", title, (missing,))
    head = ("variant", "what", "predicted", "measured", "error")
    said = ("Bytes follow from the plan and are to be exact; memory and time come from a cost model.",)
    return Section("predicted", title, said, (), (Table("The plan's word against what came of it", head, tuple(rows)),))

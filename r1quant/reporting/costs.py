"""The sections on what a model costs: memory, tokens a second, which cards hold it; and predictions beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from r1quant.records.bench import Timing
from r1quant.records.speed_rows import HEADING, REFERENCE_HEADING, load_text, reference_rows, speed_rows
from r1quant.reporting import untrusted
from r1quant.reporting.document import Chart, Section, Series, Table
from r1quant.reporting.formatting import NONE, figure, nbytes, percent, seconds, tokens
from r1quant.reporting.hardware import CardFit, HardwareSummary, MemoryCurve, MemoryModel
from r1quant.reporting.quality import looks
from r1quant.reporting.summary import ModelSummary

UNITS = {"bytes": nbytes, "seconds": seconds, "nats": figure}
LOADS = 6  # that the chart of speeds has room for


def memory(hardware: HardwareSummary | None, chosen: str | None) -> Section:
    """Charts of the baseline, which comes first, and of the variant that is recommended; all are in the table."""
    title = "Memory against context"
    if hardware is None:
        unknown = (
            "No record holds the model's sizes, so its memory was not modelled. Give the output folder, or the file "
            "that `quantize --record` wrote."
        )
        return Section("memory", title, (unknown,))
    model = hardware.memory
    highest = max(max(curve.total_bytes) for curve in model.sides)
    usable = model.usable_bytes
    top = 1.08 * (usable if highest < usable < 2.5 * highest else highest) / 1e9
    drawn = [curve for i, curve in enumerate(model.sides) if i == 0 or curve.name == chosen]
    charts = tuple(_memory_chart(curve, model, top, i) for i, curve in enumerate(drawn))
    head = ("model", "weights", "cache per token", "activations", "runtime",
            f"at {tokens(model.contexts[-1])} tokens", "longest context that fits")  # fmt: skip
    sentence = (
        f"Modelled, not measured, on {model.card} ({nbytes(model.memory_bytes)}, of which a runtime can use "
        f"{nbytes(usable)}), with one text at a time and a 16-bit cache."
    )
    table = Table("What takes the memory", head, tuple(map(_memory_row, model.sides)))
    return Section("memory", title, (sentence,), charts, (table,))


def _memory_row(curve: MemoryCurve) -> tuple[str, ...]:
    """At the longest context."""
    parts = (curve.weights_bytes, curve.kv_bytes_per_token, curve.activations_bytes[-1], curve.runtime_bytes)
    cells = (nbytes(part or None) for part in parts)
    return (curve.name, *cells, nbytes(curve.total_bytes[-1]), tokens(curve.max_context))


def _memory_chart(curve: MemoryCurve, model: MemoryModel, top: float, index: int) -> Chart:
    x = model.contexts
    layers = (
        ("weights", [curve.weights_bytes] * len(x)),
        ("cache", curve.kv_bytes),
        ("activations", curve.activations_bytes),
        ("runtime", [curve.runtime_bytes] * len(x)),
    )
    series = tuple(
        Series(label, x, [value / 1e9 for value in values], look)
        for look, (label, values) in enumerate(layers)
        if any(values)
    )
    usable = model.usable_bytes / 1e9
    limit = (usable, f"{model.card}: {usable:.1f} GB usable") if usable <= top else None
    alt = ", ".join(f"{one.label} {figure(one.y[-1])} GB" for one in series) + f" at {tokens(x[-1])} tokens of context"
    return Chart(f"memory-{index}", f"Memory: {curve.name}", alt, "stack", "context (tokens)", "GB",
                 series, limit=limit, top=top)  # fmt: skip


def speed(models: Sequence[ModelSummary]) -> Section:
    title, timed = "Tokens per second", [model for model in models if model.speed]
    if not timed:
        return Section("speed", title, ("Nothing was timed. `r1quant bench OUT --record FILE` measures speed.",))
    measured = [_plain(row.cells) for model in timed for row in speed_rows(model.speed, model.name)]
    tables = [Table("Measured: median (smallest .. largest)", HEADING, tuple(dict.fromkeys(measured)))]
    modelled = [_plain(row) for model in timed for one in model.reference for row in reference_rows(one, model.name)]
    if modelled:
        tables.append(Table("On a card of 40 GB", REFERENCE_HEADING, tuple(dict.fromkeys(modelled))))
    chart = _decode_chart(timed, looks(models))
    sentence = (
        "A load is (prompt tokens + new tokens) × the number of texts at the same time. The models took turns on one "
        "machine. A p99 gap is the 99th percentile of the time between two tokens."
    )
    return Section("speed", title, (sentence,), (chart,) if chart else (), tuple(tables))


def _plain(cells: Sequence[str]) -> tuple[str, ...]:
    return tuple(map(untrusted.plain, cells))


def _decode_chart(timed: Sequence[ModelSummary], look: Mapping[str, int]) -> Chart | None:
    ticks = tuple(dict.fromkeys(load_text(*row.load) for model in timed for row in model.speed))[:LOADS]
    baseline = {load_text(*row.load): row.baseline for row in timed[0].speed}
    drawn = [_decode_series("baseline", baseline, ticks, 0)]
    for model in timed:
        own = {load_text(*row.load): row.quantized for row in model.speed}
        drawn.append(_decode_series(model.name, own, ticks, look[model.name]))
    series = tuple(one for one in drawn if one is not None)
    if not series:
        return None
    alt = "; ".join(f"{one.label}: {figure(one.y[0])} tokens per second" for one in series)
    return Chart("decode", "Decoding speed, measured", alt, "bars", "load", "tokens per second", series, ticks=ticks)


def _decode_series(label: str, timings: Mapping[str, Timing | None], ticks: Sequence[str], look: int) -> Series | None:
    """timings: by load."""
    points = []
    for place, tick in enumerate(ticks):
        timing = timings.get(tick)
        spread = timing.speeds.decode_tokens_per_second if timing else None
        if spread is not None:
            points.append((place, spread))
    if not points:
        return None
    x, spreads = [place for place, _ in points], [spread for _, spread in points]
    y, low, high = ([getattr(spread, end) for spread in spreads] for end in ("median", "min", "max"))
    return Series(label, x, y, look, low, high)


def fits(hardware: HardwareSummary | None) -> Section:
    title = "What it runs on"
    if hardware is None or not hardware.rows:
        return Section("fits", title, ("No record holds the model's sizes, so no cards were looked up.",))
    cells = {(row.card, row.name): row for row in hardware.rows}
    sizes = {row.card: row.memory_bytes for row in hardware.rows}
    rows = tuple(
        (card, nbytes(size), *(_fit(cells[card, name]) for name in hardware.names)) for card, size in sizes.items()
    )
    sentence = (
        f"Modelled at {tokens(hardware.context)} tokens of context, one text at a time. Each cell has the longest "
        "context that fits and the decoding speed."
    )
    return Section("fits", title, (sentence,), (), (Table("Cards", ("card", "memory", *hardware.names), rows),))


def _fit(row: CardFit) -> str:
    if not row.fits:
        return f"does not fit: needs {nbytes(row.total_bytes)}"
    return f"{tokens(row.max_context)}; {figure(row.decode_tokens_per_second)} tok/s"


def predicted(models: Sequence[ModelSummary]) -> Section:
    title = "Predicted and measured"
    rows = []
    for model in models:
        for one in model.predictions:
            shown = UNITS[one.unit]
            error = percent(one.predicted / one.measured - 1, "+") if one.measured else NONE
            rows.append((model.name, one.what, shown(one.predicted), shown(one.measured), error))
    if not rows:
        missing = (
            "No record holds a prediction together with the measured figure. `quantize --record FILE` records the "
            "plan's predictions; `quantize --guided` predicts the KL divergence."
        )
        return Section("predicted", title, (missing,))
    head = ("variant", "what", "predicted", "measured", "error")
    sentence = "Sizes follow from the plan and should be exact. Memory and time come from a cost model."
    return Section("predicted", title, (sentence,), (), (Table("Predictions beside measurements", head, tuple(rows)),))

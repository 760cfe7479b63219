"""The sections on what quantization did to the answers: on text, by layer, on problems, in lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from r1quant.reporting.document import Chart, Section, Series, Table
from r1quant.reporting.formatting import NONE, figure, interval, nbytes, percent, tokens

Told = Mapping[str, Any]
SIGNS = {
    "closed_think": "closes its reasoning",
    "truncated": "is cut off",
    "unparsed": "gives no answer",
    "loops": "repeats itself",
    "language_mixing": "mixes scripts",
}


LOSS = (
    "The relative loss of a linear is the share of its output's energy that is wrong on the text it was calibrated on; "
    "without calibration, the share of its weights' energy."
)


def looks(told: Sequence[Told]) -> dict[str, int]:
    """The colour, marker and dashes of each variant, by name; 0 is the baseline's."""
    return {each["name"]: i + 1 for i, each in enumerate(told)}


def against_size(told: Sequence[Told]) -> Section:
    measured = [each for each in told if each["quality"]]
    if not measured:
        return Section(
            "size", "Quality against size", ("No text was scored: `r1quant verify OUT --record FILE` does.",)
        )
    head = ("variant", "bits a weight", "bytes", "KL, mean", "95 %", "KL, p99", "same first token", "perplexity",
            "ratio to baseline", "95 %")  # fmt: skip
    rows = tuple(_quality_row(each) for each in measured)
    first = measured[0]["quality"]
    said = (
        f"{tokens(first['tokens'])} tokens of {first['text'] or 'text'}; KL divergence in nats a token, the baseline's "
        "distribution against the quantized model's. Intervals come from resampling windows of text.",
    )
    charts = [_kl_chart(measured), _perplexity_chart(measured)]
    tables = (Table("Every variant that was measured", head, rows),)
    return Section("size", "Quality against size", said, tuple(chart for chart in charts if chart), tables)


def _quality_row(each: Told) -> tuple[str, ...]:
    found, kl = each["quality"], each["quality"]["kl"] or {}
    ppl = found["perplexity"]
    return (
        each["name"],
        figure(each["bits_per_weight"], 4),
        nbytes(each["bytes"]),
        figure(kl.get("mean")),
        interval(kl.get("mean_ci95")),
        figure(kl.get("p99")),
        percent(found["top1"]),
        figure(ppl["quantized"], 5),
        figure(ppl["ratio"], 4),
        interval(ppl["ratio_ci95"], 4),
    )


def _kl_chart(measured: Sequence[Told]) -> Chart | None:
    series = []
    for each in measured:
        kl, bits, look = each["quality"]["kl"], each["bits_per_weight"], looks(measured)[each["name"]]
        if kl and bits and kl["mean"] > 0:
            series.append(_point(each["name"], bits, kl["mean"], kl["mean_ci95"], look))
    if not series:
        return None
    alt = "; ".join(f"{one.label}: {figure(one.y[0])} nats at {figure(one.x[0])} bits" for one in series)
    return Chart(
        "kl-size", "KL divergence against size", alt, "points", "stored bits a quantized weight",
        "KL divergence (nats a token)", tuple(series), log_y=True,
    )  # fmt: skip


def _perplexity_chart(measured: Sequence[Told]) -> Chart | None:
    series = []
    for each in measured:
        ppl, bits, look = each["quality"]["perplexity"], each["bits_per_weight"], looks(measured)[each["name"]]
        if ppl["ratio"] and bits:
            series.append(_point(each["name"], bits, ppl["ratio"], ppl["ratio_ci95"], look))
    if not series:
        return None
    alt = "; ".join(f"{one.label}: {figure(one.y[0], 4)} times at {figure(one.x[0])} bits" for one in series)
    return Chart(
        "perplexity-size", "Perplexity against size", alt, "points", "stored bits a quantized weight",
        "perplexity over the baseline's", tuple(series), limit=(1.0, "baseline"),
    )  # fmt: skip


def _point(label: str, x: float, y: float, bounds: Sequence[float] | None, look: int) -> Series:
    low, high = bounds or (y, y)
    return Series(label, [x], [y], look, [low], [high])


def by_place(told: Sequence[Told]) -> Section:
    """KL by position in the text and by kind of token, loss by layer and linear."""
    title = "Where it is lost"
    charts, tables, said = [], [], []
    if chart := _position_chart(told):
        charts.append(chart)
    classes = [each for each in told if each["quality"] and each["quality"]["by_class"]]
    if classes:
        names = sorted({name for each in classes for name in each["quality"]["by_class"]})
        rows = tuple(
            (each["name"], *(figure((each["quality"]["by_class"].get(name) or {}).get("kl")) for name in names))
            for each in classes
        )
        tables.append(Table("KL divergence by kind of token (nats)", ("variant", *names), rows))
    if chart := _layers_chart(told, "relative_loss", "loss-layer", "Relative loss by layer", "mean relative loss"):
        charts.append(chart)
        said.append(LOSS)
    if chart := _layers_chart(told, "predicted_kl", "kl-layer", "Predicted KL by layer", "KL divergence (nats)"):
        charts.append(chart)
    elif told:
        said.append("No sensitivity pass was made, so the KL divergence of single layers was not predicted "
                    "(`quantize --guided` makes one).")  # fmt: skip
    tables += [_linears(each) for each in told if each["linears"]]
    return Section("place", title, tuple(said), tuple(charts), tuple(tables))


def _position_chart(told: Sequence[Told]) -> Chart | None:
    series = []
    for each in told:
        places = ((each["quality"] or {}).get("kl") or {}).get("by_position", [])
        if places and all(place["mean"] > 0 for place in places):
            x = [(place["from"] + place["to"]) / 2 for place in places]
            series.append(Series(each["name"], x, [place["mean"] for place in places], looks(told)[each["name"]]))
    if not series:
        return None
    alt = "; ".join(
        f"{one.label}: {figure(one.y[0])} at the beginning, {figure(one.y[-1])} at the end" for one in series
    )
    return Chart("kl-position", "KL divergence by position", alt, "lines", "position in the window (tokens)",
                 "KL divergence (nats a token)", tuple(series), log_y=True)  # fmt: skip


def _layers_chart(told: Sequence[Told], key: str, name: str, title: str, label: str) -> Chart | None:
    series = []
    for each in told:
        layers: dict[int, list[float]] = {}
        for row in each["linears"]:
            if row["layer"] is not None and (row[key] or 0) > 0:
                layers.setdefault(row["layer"], []).append(row[key])
        if len(layers) > 1:
            x = sorted(layers)
            y = [sum(layers[i]) / (len(layers[i]) if key == "relative_loss" else 1) for i in x]
            series.append(Series(each["name"], x, y, looks(told)[each["name"]]))
    if not series:
        return None
    alt = "; ".join(
        f"{one.label}: largest {figure(max(one.y))} in layer {one.x[list(one.y).index(max(one.y))]}" for one in series
    )
    return Chart(name, title, alt, "lines", "decoder layer", label, tuple(series), log_y=True)


def _linears(each: Told) -> Table:
    """The linears that lost the most."""
    worst = sorted(each["linears"], key=lambda row: -row["relative_loss"])[:8]
    keys = {"relative_loss": "relative loss", "predicted_kl": "predicted KL (nats)"}
    known = [key for key in keys if any(row[key] is not None for row in worst)]
    rows = tuple((row["name"], *(figure(row[key]) for key in known)) for row in worst)
    caption = f"{each['name']}: the linears that lost the most, of {len(each['linears'])}"
    return Table(caption, ("linear", *(keys[key] for key in known)), rows)


def on_problems(told: Sequence[Told]) -> Section:
    title, asked = "Problems, one by one", [each for each in told if each["problems"]]
    if not asked:
        return Section("problems", title, ("No problems were asked: `r1quant verify OUT --aime mini` asks some.",))
    samples = asked[0]["problems"]["samples"]
    said = [
        "Both models get the same problems with the same luck. McNemar's exact test asks whether the problems that "
        "only one of them solved fall on both sides alike."
    ]
    if samples > 1:
        said.append(f"A problem counts as solved where more than half of its {samples} samples are right.")
    head = ("variant", "problems", "baseline", "quantized", "change", "95 %", "both right", "lost", "gained", "neither",
            "McNemar p", "smallest drop found")  # fmt: skip
    tables = [Table("Baseline and quantized on the same problems", head, tuple(_paired_row(each) for each in asked))]
    for each in asked:
        changed = each["problems"]["changed"]
        if changed:
            rows = tuple((row["key"], str(row["baseline"]), str(row["quantized"])) for row in changed)
            more = each["problems"]["changed_in_all"] - len(changed)
            caption = f"{each['name']}: problems that changed" + (f", and {more} more" if more > 0 else "")
            tables.append(Table(caption, ("problem", f"baseline, of {samples}", f"quantized, of {samples}"), rows))
    return Section("problems", title, tuple(said), (), tuple(tables))


def _paired_row(each: Told) -> tuple[str, ...]:
    found = each["problems"]
    paired = found["paired"]
    counts = [str(paired[key]) for key in ("both", "lost", "gained", "neither")] if paired else [NONE] * 4
    return (
        each["name"],
        f"{found['set']}, {found['problems']}",
        percent(found["baseline"]["accuracy"]),
        percent(found["quantized"]["accuracy"]),
        percent(found["delta"], "+"),
        NONE if found["delta_ci95"] is None else " to ".join(percent(bound, "+") for bound in found["delta_ci95"]),
        *counts,
        figure(paired["p_value"] if paired else None),
        percent(found["smallest_detectable"]),
    )


def of_lengths(told: Sequence[Told]) -> Section:
    title, known = "Lengths and habits of answers", [each for each in told if each["lengths"]]
    if not known:
        return Section("lengths", title, ("No answers were written, so there are no lengths.",))
    sides = (f"{what}, {side}" for what in ("mean", "median", "longest") for side in ("baseline", "quantized"))
    head = ("variant", *sides, "ratio of means", "95 %")
    rows = []
    for each in known:
        found = each["lengths"]
        cells = [tokens(found[side][key]) for key in ("mean", "median", "max") for side in ("baseline", "quantized")]
        rows.append((each["name"], *cells, figure(found["ratio"]), interval(found["ratio_ci95"])))
    tables = [Table("Tokens of an answer", head, tuple(rows))]
    habits = [each for each in told if each["health"]]
    if habits:
        signs = tuple(
            (each["name"], *(f"{percent(each['health']['baseline'][key])} → {percent(each['health']['quantized'][key])}"
                             for key in SIGNS))
            for each in habits
        )  # fmt: skip
        tables.append(Table("Habits, baseline → quantized", ("variant", *SIGNS.values()), signs))
    charts = [chart for each in known if (chart := _histogram(each, looks(told)[each["name"]]))]
    said = () if charts else ("The records do not hold the length of every answer, so there is no histogram.",)
    return Section("lengths", title, said, tuple(charts[:4]), tuple(tables))


def _histogram(each: Told, look: int) -> Chart | None:
    found = each["lengths"]["histogram"]
    if found is None:
        return None
    edges = found["edges"]
    ticks = tuple(str(edge) for edge in edges[:-1])
    series = tuple(
        Series(label, range(len(ticks)), found[side], number)
        for side, label, number in (("baseline", "baseline", 0), ("quantized", each["name"], look))
    )
    counts = ", ".join(f"{side} {found[side]}" for side in ("baseline", "quantized"))
    alt = f"Of {sum(found['baseline'])} answers each, in bins of {edges[1]} tokens: {counts}"
    return Chart(f"lengths-{look}", f"Lengths of answers: {each['name']}", alt, "bars", "tokens of an answer, from",
                 "answers", series, ticks=ticks)  # fmt: skip

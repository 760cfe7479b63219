"""The sections on what quantization did to the answers: on text, by layer, on problems, in lengths."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from r1quant.records.answers import HabitShares
from r1quant.records.interval import Interval
from r1quant.records.text import ClassScores, TextScores
from r1quant.reporting import untrusted
from r1quant.reporting.document import Chart, Section, Series, Table
from r1quant.reporting.formatting import NONE, figure, interval, nbytes, percent, tokens
from r1quant.reporting.summary import LengthHistogram, LinearLoss, ModelSummary, ProblemSummary

WORST = 8  # linears that are listed of each variant
HISTOGRAMS = 4  # charts of lengths, at most
LOSS = (
    "The relative loss of a linear is the share of its output's energy that is wrong on the calibration text; without "
    "calibration, the share of its weights' energy."
)
HABITS: Mapping[str, Callable[[HabitShares], float | None]] = {
    "closes its reasoning": lambda shares: shares.closed_think,
    "is cut off": lambda shares: shares.truncated,
    "gives no answer": lambda shares: shares.unparsed,
    "repeats itself": lambda shares: shares.loops,
    "mixes scripts": lambda shares: shares.language_mixing,
}


def looks(models: Sequence[ModelSummary]) -> dict[str, int]:
    """The colour, marker and dashes of each variant, by name; 0 is the baseline's."""
    return {model.name: i + 1 for i, model in enumerate(models)}


def against_size(models: Sequence[ModelSummary]) -> Section:
    title = "Quality against size"
    measured = [(model, model.quality) for model in models if model.quality is not None]
    if not measured:
        return Section("size", title, ("No text was scored. `r1quant verify OUT --record FILE` scores one.",))
    head = ("variant", "bits per weight", "size", "mean KL", "95 %", "99th percentile of KL", "same likeliest token",
            "perplexity", "ratio to baseline", "95 %")  # fmt: skip
    rows = tuple(_quality_row(model, quality) for model, quality in measured)
    _, first = measured[0]
    source = untrusted.plain(first.text.source) if first.text else "text"
    sentence = (
        f"Measured on {tokens(first.tokens)} tokens of {source}. KL divergence compares the baseline's "
        "distribution with the quantized model's, in nats per token. Intervals come from resampling windows of text."
    )
    charts = (_kl_chart(models), _perplexity_chart(measured, looks(models)))
    table = Table("Every variant that was measured", head, rows)
    return Section("size", title, (sentence,), tuple(chart for chart in charts if chart), (table,))


def _quality_row(model: ModelSummary, quality: TextScores) -> tuple[str, ...]:
    kl, ppl = quality.kl, quality.perplexity
    return (
        model.name,
        figure(model.bits_per_weight, 4),
        nbytes(model.nbytes),
        figure(kl.mean if kl else None),
        interval(kl.mean_ci95 if kl else None),
        figure(kl.p99 if kl else None),
        percent(quality.top1),
        figure(ppl.quantized, 5),
        figure(ppl.ratio, 4),
        interval(ppl.ratio_ci95, 4),
    )


def _kl_chart(models: Sequence[ModelSummary]) -> Chart | None:
    look = looks(models)
    series = tuple(
        _point(model.name, model.bits_per_weight, model.kl.mean, model.kl.mean_ci95, look[model.name])
        for model in models
        if model.kl and model.bits_per_weight and model.kl.mean > 0
    )
    if not series:
        return None
    alt = "; ".join(f"{one.label}: {figure(one.y[0])} nats at {figure(one.x[0])} bits" for one in series)
    return Chart(
        "kl-size", "KL divergence against size", alt, "points", "stored bits per quantized weight",
        "KL divergence (nats per token)", series, log_y=True,
    )  # fmt: skip


def _perplexity_chart(measured: Sequence[tuple[ModelSummary, TextScores]], look: Mapping[str, int]) -> Chart | None:
    series = tuple(
        _point(model.name, model.bits_per_weight, ppl.ratio, ppl.ratio_ci95, look[model.name])
        for model, ppl in ((model, quality.perplexity) for model, quality in measured)
        if ppl.ratio and model.bits_per_weight
    )
    if not series:
        return None
    alt = "; ".join(f"{one.label}: {figure(one.y[0], 4)} times at {figure(one.x[0])} bits" for one in series)
    return Chart(
        "perplexity-size", "Perplexity against size", alt, "points", "stored bits per quantized weight",
        "perplexity over the baseline's", series, limit=(1.0, "baseline"),
    )  # fmt: skip


def _point(label: str, x: float, y: float, ci95: Interval | None, look: int) -> Series:
    low, high = (ci95.low, ci95.high) if ci95 else (y, y)
    return Series(label, [x], [y], look, [low], [high])


def by_place(models: Sequence[ModelSummary]) -> Section:
    """KL by position in the text and by kind of token, loss by layer and linear."""
    charts, tables, sentences = [_position_chart(models)], _class_tables(models), []
    loss = _layers_chart(models, "loss-layer", "Relative loss by layer", "mean relative loss", _mean_loss)
    if loss is not None:
        sentences.append(LOSS)
    kl = _layers_chart(models, "kl-layer", "Predicted KL by layer", "KL divergence (nats)", _sum_of_kl)
    if kl is None and models:
        sentences.append("No sensitivity pass was made, so the KL divergence of single layers was not predicted "
                         "(`quantize --guided` makes one).")  # fmt: skip
    charts += [loss, kl]
    tables += [_linears(model) for model in models if model.linears]
    return Section("place", "Where it is lost", tuple(sentences), tuple(chart for chart in charts if chart),
                   tuple(tables))  # fmt: skip


def _class_tables(models: Sequence[ModelSummary]) -> list[Table]:
    classes = {model.name: model.quality.by_class for model in models if model.quality and model.quality.by_class}
    if not classes:
        return []
    kinds = sorted({kind for by_class in classes.values() for kind in by_class})
    rows = tuple((name, *(_class_kl(by_class.get(kind)) for kind in kinds)) for name, by_class in classes.items())
    return [Table("KL divergence by kind of token (nats)", ("variant", *kinds), rows)]


def _class_kl(scores: ClassScores | None) -> str:
    """Rounding leaves a divergence of nothing a little below 0."""
    return NONE if scores is None or scores.kl is None else figure(max(0.0, scores.kl.mean))


def _position_chart(models: Sequence[ModelSummary]) -> Chart | None:
    series = []
    for model in models:
        bands = model.kl.by_position if model.kl else ()
        if bands and all(band.mean > 0 for band in bands):
            x = [(band.start + band.end) / 2 for band in bands]
            series.append(Series(model.name, x, [band.mean for band in bands], looks(models)[model.name]))
    if not series:
        return None
    alt = "; ".join(
        f"{one.label}: {figure(one.y[0])} at the beginning, {figure(one.y[-1])} at the end" for one in series
    )
    return Chart("kl-position", "KL divergence by position", alt, "lines", "position in the window (tokens)",
                 "KL divergence (nats per token)", tuple(series), log_y=True)  # fmt: skip


def _mean_loss(linears: Sequence[LinearLoss]) -> float:
    """Of those that lost anything."""
    losses = [linear.relative_loss for linear in linears if linear.relative_loss > 0]
    return sum(losses) / max(len(losses), 1)


def _sum_of_kl(linears: Sequence[LinearLoss]) -> float:
    return sum(max(linear.predicted_kl or 0.0, 0.0) for linear in linears)


def _layers_chart(
    models: Sequence[ModelSummary],
    name: str,
    title: str,
    label: str,
    total: Callable[[Sequence[LinearLoss]], float],
) -> Chart | None:
    """total: of the linears of one layer; layers in which it is 0 are left out."""
    series = []
    for model in models:
        layers: dict[int, list[LinearLoss]] = {}
        for linear in model.linears:
            if linear.layer is not None:
                layers.setdefault(linear.layer, []).append(linear)
        points = {layer: value for layer in sorted(layers) if (value := total(layers[layer])) > 0}
        if len(points) > 1:
            series.append(Series(model.name, [*points], [*points.values()], looks(models)[model.name]))
    if not series:
        return None
    alt = "; ".join(
        f"{one.label}: largest {figure(max(one.y))} in layer {one.x[list(one.y).index(max(one.y))]}" for one in series
    )
    return Chart(name, title, alt, "lines", "decoder layer", label, tuple(series), log_y=True)


def _linears(model: ModelSummary) -> Table:
    """The linears that lost the most."""
    worst = sorted(model.linears, key=lambda linear: -linear.relative_loss)[:WORST]
    predicted = any(linear.predicted_kl is not None for linear in worst)
    rows = tuple(
        (linear.name, figure(linear.relative_loss), *([figure(linear.predicted_kl)] if predicted else []))
        for linear in worst
    )
    head = ("linear", "relative loss", *(["predicted KL (nats)"] if predicted else []))
    return Table(f"{model.name}: the linears that lost most, out of {len(model.linears)}", head, rows)


def on_problems(models: Sequence[ModelSummary]) -> Section:
    title = "Problems, one by one"
    asked = [(model.name, model.problems) for model in models if model.problems is not None]
    if not asked:
        return Section("problems", title, ("No problems were asked. `r1quant verify OUT --aime mini` asks some.",))
    samples = asked[0][1].samples
    sentences = [
        "Both models get the same problems with the same random draws. McNemar's exact test asks whether the problems "
        "that only one of them solved are split evenly between the two."
    ]
    if samples > 1:
        sentences.append(f"A problem counts as solved if more than half of its {samples} samples are right.")
    head = ("variant", "problems", "baseline", "quantized", "change", "95 %", "both right", "lost", "gained", "neither",
            "McNemar p", "smallest detectable drop")  # fmt: skip
    rows = tuple(_problem_row(name, problems) for name, problems in asked)
    tables = [Table("Baseline and quantized model on the same problems", head, rows)]
    tables += [_changed(name, problems) for name, problems in asked if problems.changed]
    return Section("problems", title, tuple(sentences), (), tuple(tables))


def _changed(name: str, problems: ProblemSummary) -> Table:
    rows = tuple((row.key, str(row.baseline), str(row.quantized)) for row in problems.changed)
    more = problems.changed_in_all - len(problems.changed)
    caption = f"{name}: problems that changed" + (f", and {more} more" if more > 0 else "")
    samples = problems.samples
    return Table(caption, ("problem", f"baseline, of {samples}", f"quantized, of {samples}"), rows)


def _problem_row(name: str, problems: ProblemSummary) -> tuple[str, ...]:
    paired, difference = problems.paired, problems.difference
    ci95 = difference.delta_ci95
    counts = (paired.both, paired.lost, paired.gained, paired.neither) if paired else ()
    return (
        name,
        f"{problems.set}, {problems.problems}",
        percent(problems.baseline.accuracy),
        percent(problems.quantized.accuracy),
        percent(difference.delta, "+"),
        f"{percent(ci95.low, '+')} to {percent(ci95.high, '+')}" if ci95 else NONE,
        *(map(str, counts) if paired else [NONE] * 4),
        figure(paired.p_value if paired else None),
        percent(difference.smallest_detectable),
    )


def of_lengths(models: Sequence[ModelSummary]) -> Section:
    title = "Lengths and habits of answers"
    known = [(model.name, model.lengths) for model in models if model.lengths is not None]
    if not known:
        return Section("lengths", title, ("No answers were written, so there are no lengths.",))
    columns = (f"{what}, {side}" for what in ("mean", "median", "longest") for side in ("baseline", "quantized"))
    head = ("variant", *columns, "ratio of means", "95 %")
    rows = []
    for name, lengths in known:
        a, b = lengths.baseline, lengths.quantized
        cells = map(tokens, (a.mean, b.mean, a.median, b.median, a.max, b.max))
        rows.append((name, *cells, figure(lengths.ratio), interval(lengths.ratio_ci95)))
    tables = [Table("Tokens per answer", head, tuple(rows)), *_habit_tables(models)]
    charts = tuple(
        _histogram(name, lengths.histogram, looks(models)[name]) for name, lengths in known if lengths.histogram
    )
    sentences = () if charts else ("The records do not hold the length of every answer, so there is no histogram.",)
    return Section("lengths", title, sentences, charts[:HISTOGRAMS], tuple(tables))


def _habit_tables(models: Sequence[ModelSummary]) -> list[Table]:
    known = [(model.name, model.health) for model in models if model.health is not None]
    rows = tuple(
        (
            name,
            *(f"{percent(share(habits.baseline))} → {percent(share(habits.quantized))}" for share in HABITS.values()),
        )
        for name, habits in known
    )
    return [Table("Habits, baseline → quantized", ("variant", *HABITS), rows)] if rows else []


def _histogram(name: str, histogram: LengthHistogram, look: int) -> Chart:
    ticks = tuple(str(edge) for edge in histogram.edges[:-1])
    series = (
        Series("baseline", range(len(ticks)), histogram.baseline, 0),
        Series(name, range(len(ticks)), histogram.quantized, look),
    )
    counts = f"baseline {list(histogram.baseline)}, quantized {list(histogram.quantized)}"
    alt = f"Of {sum(histogram.baseline)} answers each, in bins of {histogram.edges[1]} tokens: {counts}"
    return Chart(f"lengths-{look}", f"Lengths of answers: {name}", alt, "bars", "tokens per answer, from",
                 "answers", series, ticks=ticks)  # fmt: skip

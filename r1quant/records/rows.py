"""A verification as rows of a table, for the terminal, for a model card and for a report alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields

from r1quant.records.answers import FormatShares, HabitComparison, HabitShares, ProblemScores
from r1quant.records.interval import Interval
from r1quant.records.tasks import ModelTasks, TaskComparison
from r1quant.records.text import EXACT, TextScores
from r1quant.records.verification import GateVerdict, Verification

HABITS = {
    "closed_think": "closes </think>",
    "truncated": "cut off",
    "unparsed": "no answer found",
    "loops": "repeats itself",
    "language_mixing": "mixes languages",
    "json_valid": "valid JSON",
    "tool_call_valid": "valid function calls",
}
HEADING = ("measure", "baseline", "quantized", "difference", "95 % interval")


@dataclass(frozen=True)
class ComparisonRow:
    """One measure of both models, as people read it; what it does not have is empty."""

    label: str
    baseline: str = ""
    quantized: str = ""
    difference: str = ""
    interval: str = ""

    @property
    def cells(self) -> tuple[str, ...]:
        """In the order of `HEADING`."""
        return astuple(self)


def comparison_rows(record: Verification) -> list[ComparisonRow]:
    """Everything that was measured, in the order of the record; none if only gates that need nothing were set."""
    rows: list[ComparisonRow] = []
    if record.scores is not None:
        rows += _of_text(record.scores)
    if record.aime is not None:
        rows += _of_problems(record.aime)
    if record.health is not None:
        habits, formats = record.health.habits, record.health.formats
        rows += _of_habits(habits) if habits is not None else ()
        rows += _of_shares(formats.baseline, formats.quantized) if formats is not None else ()
    if record.tasks is not None:
        rows += _of_tasks(record.tasks)
    return rows


def gate_rows(verdicts: Sequence[GateVerdict]) -> list[tuple[str, str, bool]]:
    """Of each gate: itself, the value it was judged by, whether it holds."""
    return [
        (verdict.gate, "not measured" if verdict.value is None else f"{verdict.value:.6g}", verdict.passed)
        for verdict in verdicts
    ]


def measured_on(record: Verification) -> list[str]:
    """On which text and which problems, a phrase for each."""
    phrases = []
    if record.scores is not None and record.scores.text is not None:
        phrases.append(f"{record.scores.tokens} tokens of {record.scores.text.source}")
    if record.aime is not None:
        aime = record.aime
        answers = "1 answer" if aime.samples == 1 else f"{aime.samples} answers"
        phrases.append(f"{aime.problems} problems of {aime.asked.set}, {answers} each")
    return phrases


def remarks(record: Verification) -> list[str]:
    """What must be known to read the rows rightly: how exact the divergence is, and what the problems could show."""
    lines = []
    if record.scores is not None and record.scores.kl_estimator != EXACT:
        lines.append(f"KL divergence: {record.scores.kl_estimator}")
    if record.aime is not None:
        difference = record.aime.difference
        least = difference.smallest_detectable
        power = "" if least is None else f"; this run could have found a drop of {100 * least:.1f} points"
        lines.append(f"accuracy: p = {difference.p_value:.3f} for no difference{power}")
    return lines


def percent(share: float, sign: str = "") -> str:
    return f"{100 * share:{sign}.1f} %"


def between(bounds: Interval | None, form: str, scale: float = 1, unit: str = "") -> str:
    """An interval for people; empty if there is none, as with a single window of text."""
    return "" if bounds is None else f"{scale * bounds.low:{form}} .. {scale * bounds.high:{form}}{unit}"


def _of_text(scores: TextScores) -> Iterator[ComparisonRow]:
    ppl, kl = scores.perplexity, scores.kl
    yield ComparisonRow("perplexity", f"{ppl.baseline:.4f}", f"{ppl.quantized:.4f}")
    yield ComparisonRow("perplexity, ratio", difference=f"{ppl.ratio:.4f}", interval=between(ppl.ratio_ci95, ".4f"))
    yield ComparisonRow("change of probability, RMS", difference=f"{scores.delta_p_rms:.6f}")
    if kl is None:
        return
    mean_interval = between(kl.mean_ci95, ".6f")
    yield ComparisonRow("KL divergence, mean (nats)", difference=f"{kl.mean:.6f}", interval=mean_interval)
    if kl.predicted is not None:
        yield ComparisonRow("KL divergence, predicted", difference=f"{kl.predicted:.6f}")
    yield ComparisonRow("KL divergence, median", difference=f"{kl.median:.6f}")
    yield ComparisonRow("KL divergence, 99th percentile", difference=f"{kl.p99:.6f}")
    for name, part in scores.by_class.items():
        if part.kl is not None:
            yield ComparisonRow(f"KL divergence, {name} tokens", difference=f"{part.kl.mean:.6f}")
    if scores.top1 is not None:
        top1_interval = between(scores.top1_ci95, ".4f")
        yield ComparisonRow("top-1 agreement", difference=f"{scores.top1:.4f}", interval=top1_interval)


def _of_problems(aime: ProblemScores) -> Iterator[ComparisonRow]:
    before, after = aime.baseline, aime.quantized
    on = f"on {aime.asked.set}"
    yield ComparisonRow(
        f"accuracy {on}, mean of {aime.samples}",
        percent(before.accuracy),
        percent(after.accuracy),
        percent(aime.difference.delta, "+"),
        between(aime.difference.delta_ci95, "+.1f", 100, " %"),
    )
    yield ComparisonRow(
        "its 95 % interval", between(before.ci95, ".1f", 100, " %"), between(after.ci95, ".1f", 100, " %")
    )
    if aime.samples > 1:
        yield _of_share(f"accuracy, majority of {aime.samples}", before.majority, after.majority)
        yield _of_share(f"any of {aime.samples}", before.any_right, after.any_right)


def _of_habits(habits: HabitComparison) -> Iterator[ComparisonRow]:
    yield from _of_shares(habits.baseline, habits.quantized)
    ratio = "" if habits.length_ratio is None else f"× {habits.length_ratio:.3f}"
    yield ComparisonRow(
        "tokens of an answer, mean",
        f"{habits.baseline.length.mean:.0f}",
        f"{habits.quantized.length.mean:.0f}",
        ratio,
        between(habits.length_ratio_ci95, ".3f"),
    )


def _of_shares(baseline: HabitShares | FormatShares, quantized: HabitShares | FormatShares) -> Iterator[ComparisonRow]:
    for field in fields(baseline):
        if field.name in HABITS:
            yield _of_share(HABITS[field.name], getattr(baseline, field.name), getattr(quantized, field.name))


def _of_share(label: str, baseline: float, quantized: float) -> ComparisonRow:
    return ComparisonRow(label, percent(baseline), percent(quantized), percent(quantized - baseline, "+"))


def _of_tasks(tasks: TaskComparison) -> Iterator[ComparisonRow]:
    for task, metrics in tasks.delta.items():
        for metric, part in metrics.items():
            yield ComparisonRow(
                f"{task}, {metric}",
                _metric(tasks.baseline, task, metric),
                _metric(tasks.quantized, task, metric),
                f"{part.mean:+.4f}",
                between(part.ci95, "+.4f"),
            )


def _metric(model: ModelTasks, task: str, metric: str) -> str:
    scores = model.tasks.get(task)
    found = scores.metrics.get(metric) if scores is not None else None
    return "" if found is None or found.value is None else f"{found.value:.4f}"

"""r1quant verify"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from r1quant.cli import console
from r1quant.cli.options import Given, Grouped, GroupedOption, at_server, build, takes
from r1quant.cli.settings import read_settings
from r1quant.jobs.verify.options import RUNTIME as MODELS
from r1quant.jobs.verify.options import VerifyOptions


@click.command(cls=Grouped)
@click.argument("out", required=False)
@click.option(
    "--baseline",
    cls=GroupedOption,
    group=MODELS,
    help="The float model that OUT was made from.",
    show_default="what the record of OUT says",
)
@takes(VerifyOptions)
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path),
    help="Measure again what this record of verify measured, with the same options.",
)
@console.recorded
@console.common
def verify(
    out: str | None,
    baseline: str | None,
    source: Path | None,
    record: Path | None,
    as_json: bool,
    debug: bool,
    given: Given,
) -> int:
    """Measure how far OUT is from the model it was made from: on text, on problems, on tasks, in a runtime.

    OUT left out is the quantized checkpoint last written into the current folder. Answers and what the baseline says
    are kept in $R1QUANT_CACHE (~/.cache/r1quant), so that a run goes on where it was interrupted.
    """
    from r1quant.errors import RecipeError
    from r1quant.jobs.verify.run import applicable_gates, repeat
    from r1quant.jobs.verify.run import verify as job

    with console.watching() as progress:
        if source is not None:
            if given or out or baseline:
                raise RecipeError("--from repeats a run as it was", "leave out all other options, or leave out --from")
            from r1quant.checkpoint.safetensors import read_json

            done = repeat(read_json(source), progress)
        else:
            options = chosen(given)
            if "gate" not in given:
                options = replace(options, gate=applicable_gates(read_settings(Path.cwd()).gates, options))
            done = job(out, baseline, options, progress)
    found = done.as_dict()
    console.write_record(record, found)

    def show() -> None:
        heading = ["measure", "baseline", "quantized", "difference", "95 % interval"]
        rows = [*_text(found), *_aime(found), *_health(found), *_tasks(found)]
        console.table([heading, *rows], f"{found['out']} against {found['model']}{_about(found)}")
        for line in _notes(found):
            console.note(line)
        if found["gates"]:
            console.table([["gate", "value", "verdict"], *map(_verdict, found["gates"])])

    console.emit(found, as_json, show)
    return 0 if done.passed else 1


def chosen(given: Given) -> VerifyOptions:
    """The options that were given, with what follows from naming a server: most servers cannot score a text."""
    values = at_server(at_server(given), "baseline_url", "baseline_backend")
    if values.get("base_url") and values.keys() & {"aime", "health", "tasks"}:
        values.setdefault("windows", 0)
    return build(VerifyOptions, values)


Row = list[str]


def _about(found: Mapping[str, Any]) -> str:
    parts = []
    if "text" in found:
        parts.append(f"{found['tokens']} tokens of {found['text']['source']}")
    if "aime" in found:
        aime = found["aime"]
        parts.append(f"{aime['problems']} problems of {aime['set']}, {aime['samples']} answers each")
    return ", ".join(["", *parts])


def _text(found: Mapping[str, Any]) -> list[Row]:
    if "text" not in found:
        return []
    ppl, kl = found["perplexity"], found["kl"]
    rows = [
        ["perplexity", f"{ppl['baseline']:.4f}", f"{ppl['quantized']:.4f}", "", ""],
        ["perplexity, ratio", "", "", f"{ppl['ratio']:.4f}", between(ppl["ratio_ci95"], 4)],
        ["change of probability, RMS", "", "", f"{found['delta_p_rms']:.6f}", ""],
    ]
    if kl is None:
        return rows
    rows += [
        ["KL divergence, mean (nats)", "", "", f"{kl['mean']:.6f}", between(kl["mean_ci95"], 6)],
        *([["KL divergence, predicted", "", "", f"{kl['predicted']:.6f}", ""]] if kl["predicted"] else []),
        ["KL divergence, median", "", "", f"{kl['median']:.6f}", ""],
        ["KL divergence, 99th percentile", "", "", f"{kl['p99']:.6f}", ""],
        *(
            [f"KL divergence, {name} tokens", "", "", f"{part['kl']['mean']:.6f}", ""]
            for name, part in found["by_class"].items()
        ),
        ["top-1 agreement", "", "", f"{found['top1']:.4f}", between(found["top1_ci95"], 4)],
    ]
    return rows


def _aime(found: Mapping[str, Any]) -> list[Row]:
    if "aime" not in found:
        return []
    aime = found["aime"]
    a, b = aime["baseline"], aime["quantized"]
    rows = [
        [f"accuracy, mean of {aime['samples']}", percent(a["accuracy"]), percent(b["accuracy"]),
         percent(aime["delta"], "+"), between(aime["delta_ci95"], 1, 100)],
        ["accuracy, 95 % interval", between(a["ci95"], 1, 100), between(b["ci95"], 1, 100), "", ""],
    ]  # fmt: skip
    if aime["samples"] > 1:
        for key, name in (("maj", f"accuracy, majority of {aime['samples']}"), ("pass", f"any of {aime['samples']}")):
            rows.append([name, percent(a[key]), percent(b[key]), percent(b[key] - a[key], "+"), ""])
    return rows


def _health(found: Mapping[str, Any]) -> list[Row]:
    names = {
        "closed_think": "closes </think>",
        "truncated": "cut off",
        "unparsed": "no answer found",
        "loops": "repeats itself",
        "language_mixing": "mixes languages",
        "json_valid": "valid JSON",
        "tool_call_valid": "valid function calls",
    }
    rows = []
    for part in (found.get("health", {}), found.get("health", {}).get("formats", {})):
        for key, name in names.items():
            if key in part.get("baseline", {}):
                a, b = part["baseline"][key], part["quantized"][key]
                rows.append([name, percent(a), percent(b), percent(b - a, "+"), ""])
    if "length_ratio" in found.get("health", {}):
        health = found["health"]
        a, b = (health[side]["length"]["mean"] for side in ("baseline", "quantized"))
        ratio = health["length_ratio"]
        rows.append(["tokens of an answer, mean", f"{a:.0f}", f"{b:.0f}", f"x {ratio:.3f}" if ratio else "", ""])
    return rows


def _tasks(found: Mapping[str, Any]) -> list[Row]:
    rows = []
    tasks = found.get("tasks", {})
    for task, metrics in tasks.get("delta", {}).items():
        for metric, part in metrics.items():
            a, b = (tasks[side]["tasks"][task]["metrics"][metric]["value"] for side in ("baseline", "quantized"))
            change = f"{part['mean']:+.4f}"
            rows.append([f"{task}, {metric}", f"{a:.4f}", f"{b:.4f}", change, between(part["ci95"], 4)])
    return rows


def _notes(found: Mapping[str, Any]) -> list[str]:
    lines = []
    if "text" in found and found["kl_estimator"] != "exact":
        lines.append(f"KL divergence: {found['kl_estimator']}")
    if "aime" in found:
        p, least = found["aime"]["p_value"], found["aime"]["smallest_detectable"]
        seen = "" if least is None else f"; this run could have found a drop of {100 * least:.1f} points"
        lines.append(f"accuracy: p = {p:.3f} for no difference{seen}")
    return lines


def _verdict(gate: Mapping[str, Any]) -> Row:
    value = "not measured" if gate["value"] is None else f"{gate['value']:.6g}"
    return [gate["gate"], value, "passed" if gate["passed"] else "FAILED"]


def percent(share: float, sign: str = "") -> str:
    return f"{100 * share:{sign}.1f} %"


def between(bounds: list[float] | None, digits: int, scale: float = 1) -> str:
    """An interval for people; empty where one window of text gives none."""
    return "" if bounds is None else f"{bounds[0] * scale:.{digits}f} .. {bounds[1] * scale:.{digits}f}"

"""r1quant calib"""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from r1quant.cli import console
from r1quant.cli.options import Given, Grouped, GroupedOption, ModelName, at_server, build, part_of, takes
from r1quant.cli.settings import pick_model
from r1quant.core.formatting import seconds_text
from r1quant.jobs.generate.options import GenerateOptions
from r1quant.jobs.setup import Setup
from r1quant.recipe import OUTPUT


@click.group()
def calib() -> None:
    """Text to calibrate on: have a model write its own, and see what a text holds."""


@calib.command(cls=Grouped)
@click.argument("model", required=False, type=ModelName())
@click.option(
    "-o",
    "--out",
    cls=GroupedOption,
    group=OUTPUT,
    type=click.Path(path_type=Path),
    help="JSONL file that is written.",
    show_default="MODEL-self.jsonl",
)
@takes(GenerateOptions, Setup)
@console.common
def generate(model: str | None, out: Path | None, given: Given, as_json: bool, debug: bool) -> int:
    """Have MODEL answer prompts in its own chat format, and write what it says, reasoning and all, for --calib.

    Answers are kept in $R1QUANT_CACHE (~/.cache/r1quant) as they arrive: interrupted, the same command goes on, and
    ends in the same file. Its first line says how the others were drawn.
    """
    from r1quant.jobs.generate.run import generate as job
    from r1quant.jobs.generate.selftext import summary_line

    setup = build(Setup, at_server(part_of(Setup, given)))
    options = build(GenerateOptions, {**part_of(GenerateOptions, given), "setup": setup})
    name = pick_model(model)
    with console.watching() as progress:
        done = job(name, out, options, progress)

    def show() -> None:
        again = " (it was complete already)" if done.already_complete else ""
        following = f"r1quant quantize {shlex.quote(name)} --calib {shlex.quote(str(done.out))}"
        written = summary_line(done.header["summary"])
        rows = [["written", f"{done.out}{again}"], ["what", written], ["time", seconds_text(done.seconds)]]
        console.table([*rows, ["next", following]], heading=False)

    console.emit(done.as_dict(), as_json, show)
    return 0


@calib.command("show", cls=Grouped)
@click.argument("text", required=False)
@click.option(
    "--model",
    type=ModelName(),
    help="Model whose tokenizer counts the tokens.",
    show_default="$R1QUANT_MODEL, `model` of r1quant.toml, or tiny-r1",
)
@console.common
def show_text(text: str | None, model: str | None, as_json: bool, debug: bool) -> int:
    """Count what TEXT, a text or JSONL file, holds: documents, tokens, and how many of them are reasoning.

    TEXT left out is the bundled calibration text.
    """
    from r1quant.jobs.generate.run import show as job

    found = job(text, pick_model(model)).as_dict()

    def show() -> None:
        rows = [[key, str(found[key])] for key in ("documents", "tokens", "longest")]
        if found["thinking_share"] is not None:
            rows.append(["inside <think>", f"{100 * found['thinking_share']:.1f} % of the tokens"])
            rows.append(["end inside <think>", f"{found['unclosed']} documents"])
        if found["header"] is not None:
            header = found["header"]
            rows.append(["written by", f"{header.get('model')}, {header.get('backend')}, {header.get('sampling')}"])
        console.table(rows, found["source"], heading=False)

    console.emit(found, as_json, show)
    return 0

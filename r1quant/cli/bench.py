"""r1quant bench"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from r1quant.cli import console
from r1quant.cli.options import Given, Grouped, GroupedOption, ModelName, at_server, build, part_of, takes
from r1quant.jobs.bench.options import BenchOptions
from r1quant.jobs.setup import RUNTIME, Setup

if TYPE_CHECKING:
    from r1quant.records.bench import Bench


@click.command(cls=Grouped)
@click.argument("out", required=False, type=ModelName())
@click.option(
    "--baseline",
    cls=GroupedOption,
    group=RUNTIME,
    help="The float model that takes turns with OUT, or none.",
    show_default="what the record of OUT says",
)
@takes(BenchOptions, Setup, but=("concurrency", "patience"))
@console.recorded
@console.common
def bench(out: str | None, baseline: str | None, given: Given, record: Path | None, as_json: bool, debug: bool) -> int:
    """Measure how fast OUT and the model it was made from run here: tokens a second, time to first token, memory.

    All combinations of --prompt-tokens, --new-tokens and --batch are measured.
    What a card of 40 GB would do is modelled if there is none here, and labelled so.
    OUT left out is the quantized checkpoint last written into the current folder.
    """
    from r1quant.jobs.bench.run import bench as job

    setup, options = build(Setup, at_server(part_of(Setup, given))), build(BenchOptions, part_of(BenchOptions, given))
    with console.watching() as progress:
        measured = job(out, baseline, setup, options, progress, debug)
    console.write_record(record, measured.as_dict())
    console.emit(measured.as_dict(), as_json, lambda: show(measured))
    return 0


def show(record: Bench) -> None:
    """Both models at every load, then the card of 40 GB."""
    from r1quant.records.speed_rows import HEADING, REFERENCE_HEADING, reference_rows, speed_rows

    rows = [row.cells for row in speed_rows(record.rows)]
    console.table([HEADING, *rows], f"{record.out}: median (smallest .. largest)")
    console.table([REFERENCE_HEADING, *reference_rows(record.reference)], "On a card of 40 GB")

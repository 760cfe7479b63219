"""r1quant verify"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from r1quant.cli import console
from r1quant.cli.options import Given, Grouped, GroupedOption, ModelName, at_server, build, takes
from r1quant.cli.settings import read_settings
from r1quant.jobs.setup import RUNTIME
from r1quant.jobs.verify.options import VerifyOptions

if TYPE_CHECKING:
    from r1quant.records.verification import Verification


@click.command(cls=Grouped)
@click.argument("out", required=False, type=ModelName())
@click.option(
    "--baseline",
    cls=GroupedOption,
    group=RUNTIME,
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
    from r1quant.jobs.verify.parts import applicable_gates
    from r1quant.jobs.verify.run import repeat
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
    console.emit(found, as_json, lambda: _show(done))
    return 0 if done.passed else 1


def chosen(given: Given) -> VerifyOptions:
    """The options that were given, with what follows from naming a server: most servers cannot score a text."""
    values = dict(at_server(given))
    if values.get("base_url") and values.keys() & {"aime", "health", "tasks"}:
        values.setdefault("windows", 0)
    return build(VerifyOptions, values)


def _show(record: Verification) -> None:
    from r1quant.records.rows import HEADING, comparison_rows, gate_rows, measured_on, remarks

    title = ", ".join([f"{record.out} against {record.model}", *measured_on(record)])
    console.table([HEADING, *(row.cells for row in comparison_rows(record))], title)
    for line in remarks(record):
        console.note(line)
    if record.gates:
        verdicts = [(gate, value, "passed" if passed else "FAILED") for gate, value, passed in gate_rows(record.gates)]
        console.table([("gate", "value", "verdict"), *verdicts])

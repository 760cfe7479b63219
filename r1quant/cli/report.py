"""r1quant report"""

from __future__ import annotations

from pathlib import Path

import click

from r1quant.cli import console


@click.command()
@click.argument("records", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    default=Path("report"),
    show_default=True,
    help="Folder of the report.",
)
@click.option("--png", is_flag=True, help="Also draw the main chart as PNG, for model cards.")
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 if the report that is there would differ.")
@console.common
def report(records: tuple[Path, ...], out: Path, png: bool, check: bool, as_json: bool, debug: bool) -> int:
    """Make a report of RECORDS: one HTML page that needs no network, Markdown, and JSON.

    RECORDS are files that quantize, verify and bench wrote with --record, outputs of quantize, or folders that hold
    such; left out, they are those in the current folder.
    """
    from r1quant.jobs.report.run import report as job

    done = job(records, out, png, check)

    def show() -> None:
        rows = [["verdict", done.verdict], ["records", str(done.records)]]
        if check:
            rows.append(["differs", "\n".join(done.differing) or "nothing"])
        else:
            rows.append(["written", "\n".join(map(str, done.files))])
        console.table(rows, heading=False)
        if done.note:
            console.note(f"note: {done.note}")

    console.emit(done.as_dict(), as_json, show)
    return 1 if done.differing else 0

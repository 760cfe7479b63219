"""r1quant export"""

from __future__ import annotations

from pathlib import Path

import click

from r1quant.cli import console
from r1quant.cli.next_steps import show as show_next
from r1quant.cli.options import Given, Grouped, GroupedOption, ModelName, Word, build, takes
from r1quant.core.formatting import bytes_text, seconds_text
from r1quant.planning.targets import ExportOptions
from r1quant.recipe import OUTPUT
from r1quant.registry import FORMATS


@click.command(cls=Grouped)
@click.argument("source", required=False, type=ModelName())
@click.option(
    "--to",
    cls=GroupedOption,
    group=OUTPUT,
    required=True,
    type=Word(tuple(FORMATS)),
    help="Formats to write, one or more with commas between.",
)
@click.option(
    "-o",
    "--out",
    cls=GroupedOption,
    group=OUTPUT,
    type=click.Path(path_type=Path),
    help="File or folder that is written.",
    show_default="named after SOURCE and the format",
)
@takes(ExportOptions)
@console.common
def export(source: str | None, to: str, out: Path | None, given: Given, as_json: bool, debug: bool) -> None:
    """Write SOURCE in other formats, with the same weights bit for bit.

    SOURCE is a quantized checkpoint (GPTQ, AWQ, compressed-tensors), a GGUF file, an ONNX folder, or a float model,
    which is converted without quantizing. Left out, it is the quantized checkpoint last written into this folder. What
    a format cannot hold exactly is refused; K-quants and rounded embeddings are named as such.
    """
    from r1quant.jobs.artifacts import newest_output
    from r1quant.jobs.export.run import export as job
    from r1quant.jobs.serving import as_dict, next_steps

    name = source if source is not None else newest_output(Path())
    formats = [word.strip() for word in to.split(",") if word.strip()]
    with console.watching() as progress:
        done = job(name, formats, out, build(ExportOptions, given), progress)
    steps = [next_steps(written.path) for written in done.written]
    content = {**done.as_dict(), "next": [as_dict(step) for artifact in steps for step in artifact]}

    def show() -> None:
        rows = [["format", "written", "size", "weights"]]
        for written in done.written:
            rounded = f"{len(written.inexact)} tensors rounded" if written.inexact else "exact"
            rows.append([written.format, str(written.path), bytes_text(written.nbytes), rounded])
        console.table(rows)
        console.note(f"{seconds_text(done.seconds)}, peak memory {bytes_text(done.peak_rss_bytes)}")
        for artifact in steps:
            show_next(artifact)

    console.emit(content, as_json, show)

"""r1quant bench"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from r1quant.cli import console

if TYPE_CHECKING:
    from r1quant.records.bench import Bench

BACKENDS = "auto, torch, onnxruntime, llamacpp, openai"


@click.command()
@click.argument("out", required=False)
@click.option("--baseline", help="The float model to take turns with, or none.  [default: what OUT's record says]")
@click.option("--backend", help=f"Runs OUT: {BACKENDS}.  [default: auto, or openai with --base-url]")
@click.option("--base-url", "base_urls", multiple=True, help="A server that runs OUT. Repeatable.")
@click.option("--served-model", "served", help="What the server calls OUT.  [default: the first it lists]")
@click.option("--prompt-tokens", multiple=True, default=["512"], show_default=True, help="Of each text: 512,4096.")
@click.option("--new-tokens", multiple=True, default=["128"], show_default=True, help="Of each text.")
@click.option("--batch", multiple=True, default=["1"], show_default=True, help="Texts at the same time: 1,8,32.")
@click.option("--repeats", default=5, show_default=True, help="Times that each is measured.")
@click.option("--warm-up", default=1, show_default=True, help="Times that each is run before that.")
@click.option("--device", default="auto", show_default=True, help="Of models in torch: cpu, cuda, or auto.")
@click.option("--dtype", default="auto", show_default=True, help="Of models in torch: float32, bfloat16, ... or auto.")
@console.recorded
@console.common
def bench(
    out: str | None,
    baseline: str | None,
    prompt_tokens: tuple[str, ...],
    new_tokens: tuple[str, ...],
    batch: tuple[str, ...],
    repeats: int,
    warm_up: int,
    record: Path | None,
    as_json: bool,
    debug: bool,
    **how: Any,
) -> int:
    """Measure how fast OUT and the model it was made from run here: tokens a second, time to first token, memory.

    --prompt-tokens, --new-tokens and --batch may be given several times or as lists; all combinations are measured.
    What a card of 40 GB would do is modelled where there is none here, and labelled so.
    OUT left out is the quantized checkpoint last written into the current folder.
    """
    from r1quant.jobs.bench.run import Protocol
    from r1quant.jobs.bench.run import bench as job
    from r1quant.jobs.runtimes import Setup

    protocol = Protocol(
        numbers("prompt-tokens", prompt_tokens), numbers("new-tokens", new_tokens), numbers("batch", batch),
        repeats, warm_up,
    )  # fmt: skip
    how["backend"] = how["backend"] or ("openai" if how["base_urls"] else "auto")
    with console.watching() as progress:
        measured = job(out, baseline, Setup(**how), protocol, progress, debug)
    console.write_record(record, measured.as_dict())
    console.emit(measured.as_dict(), as_json, lambda: show(measured))
    return 0


def numbers(name: str, values: tuple[str, ...]) -> tuple[int, ...]:
    """Whole numbers out of what was given, lists taken apart, each once. Raises RecipeError."""
    from r1quant.errors import RecipeError

    words = [word.strip() for value in values for word in value.split(",")]
    if not all(word.isdecimal() for word in words):
        raise RecipeError(f"--{name} {','.join(values)} are not whole numbers", f"give one or several: --{name} 1,8")
    return tuple(dict.fromkeys(map(int, words)))


def show(record: Bench) -> None:
    """Both models at every load, then the card of 40 GB."""
    from r1quant.records.speed_rows import HEADING, REFERENCE_HEADING, reference_rows, speed_rows

    rows = [row.cells for row in speed_rows(record.rows)]
    console.table([HEADING, *rows], f"{record.out}: median (smallest .. largest)")
    console.table([REFERENCE_HEADING, *reference_rows(record.reference)], "On a card of 40 GB")

"""r1quant and other quantizers side by side: same model, same tokens, same machine, one measure for all.

    python scripts/compare_peers.py --text-calib CALIB.txt --text-eval TEST.txt --text-eval pydoc@12 --bits 4 --bits 3

Each row of peers/rows.py is quantized as a process of its own, in an environment of its own under .venvs, which is
built when it is first needed. Before its first timed run, a program quantizes one layer, so that none pays for
compilation. All results are scored by `r1quant verify` in float32. Finished rows are merged into the record at once:
a run can be cut short, gone on with (--missing), and a long row be run alone (--only auto-round: more than an hour).
Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

from pathlib import Path

import click
from peers import record
from peers.page import markdown
from peers.rows import ROWS, chosen, named
from peers.rows import ours as row_of_ours
from peers.scoring import Measure
from peers.tasks import Order, tasks
from peers.texts import text
from peers.turns import Workplace, compare, now, rescore

from r1quant.storage import atomic

ROOT = Path(__file__).resolve().parent.parent
TEXTS = ("bundled", "pydoc@12")


@click.command(help=__doc__)
@click.option("--text-calib", default="bundled", show_default=True, help="bundled, chains, pydoc or a file.")
@click.option(
    "--text-eval",
    "texts",
    multiple=True,
    default=TEXTS,
    show_default=True,
    help="What quality is measured on; NAME@WINDOWS where not on --windows. Repeatable.",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    default=("smollm2",),
    show_default=True,
    help="smollm2, tiny-r1, a folder or a GGUF file. Repeatable.",
)
@click.option("--bits", multiple=True, type=int, default=(4,), show_default=True, help="Repeatable.")
@click.option("--group-size", "groups", multiple=True, type=int, default=(64,), show_default=True, help="Repeatable.")
@click.option("--only", multiple=True, metavar="NAME", help="Only these rows; * stands for anything. Repeatable.")
@click.option("--ours", multiple=True, metavar="NAME=FLAGS", help="One more row: flags of quantize. Repeatable.")
@click.option("--missing", is_flag=True, help="Only rows that the record lacks.")
@click.option("--rescore", "again", is_flag=True, help="Score what lies in the work folder, without quantizing.")
@click.option("--repeats", default=1, show_default=True, help="Timed runs of each row, in turns.")
@click.option("--samples", default=64, show_default=True, help="Calibration windows.")
@click.option("--seq-len", default=512, show_default=True, help="Tokens in a window.")
@click.option("--windows", default=24, show_default=True, help="Windows that quality is measured on.")
@click.option("--layers", type=int, help="Only so many decoder layers of the model, to try a row.")
@click.option("--python", "pythons", multiple=True, metavar="ENVIRONMENT=PATH", help="An interpreter to use instead.")
@click.option("--work", type=click.Path(path_type=Path), default=ROOT / "build" / "peers", help="Scratch folder.")
@click.option(
    "--record",
    "path",
    type=click.Path(path_type=Path),
    default=ROOT / "reports" / "peers.json",
    help="The record; a page is written beside it.",
)
def main(
    text_calib: str, texts: tuple[str, ...], models: tuple[str, ...], bits: tuple[int, ...], groups: tuple[int, ...],
    only: tuple[str, ...], ours: tuple[str, ...], missing: bool, again: bool, repeats: int, samples: int,
    seq_len: int, windows: int, layers: int | None, pythons: tuple[str, ...], work: Path, path: Path,
) -> None:  # fmt: skip
    work = work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    rows = chosen([*ROWS, *named(ours, ROWS, row_of_ours)], only)
    grids = tuple((each, group) for each in bits for group in groups)
    order = Order(models, grids, text(text_calib, work), samples, seq_len, layers, work)
    measure = Measure(tuple(text(spec, work) for spec in texts), windows, seq_len, work / "cache")
    place = Workplace(dict(spec.split("=", 1) for spec in pythons), path, now())
    done = {record.key(entry) for entry in record.load(path) if "error" not in entry} if missing else set()
    asked = [task for task in tasks(rows, order) if record.key(task.entry) not in done]
    try:
        if again:
            rescore(asked, measure, place)
        else:
            compare(asked, measure, place, repeats)
    finally:
        page = markdown(record.load(path))
        atomic.write_bytes(path.with_suffix(".md"), page.encode())
    click.echo(page)


if __name__ == "__main__":
    main()

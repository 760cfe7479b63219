"""Measures tiny-r1 and SmolLM2 at several bits and writes the reports of this project's own: reports/NAME/.

    python scripts/make_reports.py            both, in half an hour on two idle cores
    python scripts/make_reports.py --check    whether the reports are what their records say; measures nothing

Each command is a process of its own, as a user would start it. The records are kept beside the report, so that it can
be made again, and checked, without measuring.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import smollm2
from measuring import R1QUANT, run, write_record

from r1quant.checkpoint.resolve import open_model
from r1quant.cli import main as r1quant

REPORTS = Path(__file__).resolve().parent.parent / "reports"
RECORDS = "records"
GATES = ("--gate", "kl.mean<0.05", "--gate", "aime.delta.low>-0.1")


@dataclass(frozen=True)
class Subject:
    """A model, and what is asked of it; problems: of the set mini, 0 for none; calibration: options of quantize."""

    name: str
    bits: tuple[int, ...]
    text: tuple[str, ...]
    problems: tuple[str, ...]
    calibration: tuple[str, ...]
    load: tuple[str, ...]


SUBJECTS = {
    "tiny-r1": Subject(
        "tiny-r1",
        (8, 4, 3),
        ("--windows", "12"),
        ("--aime", "mini", "--limit", "60", "--max-tokens", "900", *GATES),
        ("--samples", "16"),
        ("--prompt-tokens", "128", "--new-tokens", "32", "--repeats", "3"),
    ),
    "smollm2": Subject(
        "SmolLM2-135M-Instruct",
        (8, 4, 3),
        ("--windows", "6", "--seq-len", "256", *GATES[:2]),
        (),
        ("--samples", "16", "--seq-len", "256", "--group-size", "64"),
        ("--prompt-tokens", "128", "--new-tokens", "32", "--repeats", "3"),
    ),
}


def measure(subject: Subject, work: Path, records: Path) -> None:
    """Leaves the records of one model in the folder `records`. work: where it is quantized."""
    model = subject.name
    if model != "tiny-r1":
        smollm2.export(open_model(smollm2.gguf()), work / model)
    for bits in subject.bits:
        out = f"{model}-{bits}bit"
        _r1quant(work, "quantize", model, "-o", out, "--bits", str(bits), *subject.calibration, "--record", "q.json")
        _r1quant(work, "verify", out, *subject.text, *subject.problems, "--record", "v.json")
        _r1quant(work, "bench", out, *subject.load, "--record", "b.json")
        for kind in ("quantize", "verify", "bench"):
            found = json.loads((work / f"{kind[0]}.json").read_text("utf-8"))
            write_record(records / f"{bits}-{kind}.json", without_paths(found, work))


def without_paths(record: dict[str, Any], work: Path) -> dict[str, Any]:
    """A record that says nothing of the machine's folders: paths inside `work` as seen from there."""
    text = json.dumps(record).replace(f"{work.resolve()}/", "")
    found: dict[str, Any] = json.loads(text)
    return found


def _r1quant(work: Path, *words: str) -> None:
    click.echo("r1quant " + " ".join(words), err=True)
    allowed = "0 | 1" if words[0] == "verify" else "0"  # a gate that fails is a result
    script = f'cd "$0" && {{ "$@"; code=$?; case $code in {allowed}) ;; *) exit $code;; esac; }}'
    command = ["bash", "-c", script, str(work), *R1QUANT, *words]
    run(command, work / "log", {"R1QUANT_CACHE": str(work / "cache")})


def write(name: str, check: bool) -> None:
    """The report of one model from its records. Ends the process where it differs or cannot be made."""
    folder = REPORTS / name
    words = ["report", str(folder / RECORDS), "-o", str(folder), *(["--check"] if check else ["--png"])]
    try:
        r1quant(words)
    except SystemExit as ended:
        if ended.code:
            raise


def chosen(names: Sequence[str]) -> list[str]:
    if unknown := set(names) - set(SUBJECTS):
        raise click.ClickException(f"unknown: {', '.join(unknown)}; there are {', '.join(SUBJECTS)}")
    return list(names) or list(SUBJECTS)


@click.command(help=__doc__)
@click.argument("names", nargs=-1)
@click.option("--check", is_flag=True, help="Only compare the reports with their records.")
@click.option("--draw", is_flag=True, help="Only write the reports again from the records that are there.")
def main(names: tuple[str, ...], check: bool, draw: bool) -> None:
    for name in chosen(names):
        if not (check or draw):
            with tempfile.TemporaryDirectory() as work:
                measure(SUBJECTS[name], Path(work), REPORTS / name / RECORDS)
        write(name, check)
    sys.exit(0)


if __name__ == "__main__":
    main()

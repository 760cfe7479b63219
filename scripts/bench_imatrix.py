"""What an importance matrix does to K-quants: none, plain, guided, by the KL divergence that r1quant verify measures.

    python scripts/bench_imatrix.py

Plain and guided are measured on several calibration texts, so that the noise is known. Writes reports/imatrix.json;
exits 1 where guided is not better than plain, by the geometric mean of all their ratios.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click
from measuring import machine, write_record
from peers.texts import Text, text

import r1quant
from r1quant.cli import console
from r1quant.planning.targets import GUIDED, NONE, PLAIN
from r1quant.records.writing import as_json

REPORT = Path(__file__).resolve().parent.parent / "reports" / "imatrix.json"
Calibration = Mapping[str, Any]  # samples, seq_len, seed: keywords of export


def calibration(spec: str) -> Calibration:
    """From SAMPLESxSEQ_LEN@SEED. Raises click.UsageError where it is none."""
    shape, _, seed = spec.partition("@")
    numbers = [*shape.split("x"), seed]
    if len(numbers) != 3 or not all(number.isdecimal() for number in numbers):
        raise click.UsageError(f"{spec!r} is not SAMPLESxSEQ_LEN@SEED, such as 64x512@0")
    return dict(zip(("samples", "seq_len", "seed"), map(int, numbers), strict=True))


def measure(model: str, kind: str, imatrix: str, made: Calibration, texts: Iterable[Text]) -> dict[str, Any]:
    """One row: a K-quant of the model, and its divergence on each text."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        done = r1quant.export(model, "gguf", out, type=kind, imatrix=imatrix, **made).written[0]
        (weights,) = out.glob(f"*-{kind}.gguf")
        kl = {}
        for each in texts:
            options: dict[str, Any] = {} if each.windows is None else {"windows": each.windows}
            kl[each.name] = r1quant.verify(weights, model, each.spec, **options).numbers()["kl.mean"]
        known = {"type": kind, "imatrix": imatrix, "calibration": dict(made) if imatrix != NONE else None, "kl": kl}
        size = {"bytes": weights.stat().st_size, **{key: as_json(done.details)[key] for key in ("types", "fallbacks")}}
    return known | size


def ratios(rows: list[dict[str, Any]]) -> list[float]:
    """KL of guided over that of plain, for each type, calibration and text."""

    def of(imatrix: str) -> list[dict[str, float]]:
        return [row["kl"] for row in rows if row["imatrix"] == imatrix]

    return [g[name] / p[name] for g, p in zip(of(GUIDED), of(PLAIN), strict=True) for name in g]


def shown(row: Mapping[str, Any]) -> list[str]:
    made = row["calibration"]
    on = "" if made is None else f"{made['samples']} x {made['seq_len']}, seed {made['seed']}"
    return [row["type"], row["imatrix"], on, *(f"{kl:.5f}" for kl in row["kl"].values())]


@click.command(help=__doc__)
@click.option("--model", default="tiny-r1", show_default=True)
@click.option("--type", "kinds", multiple=True, default=("Q4_K_M", "Q3_K_M", "Q2_K"), show_default=True)
@click.option("--calibration", "specs", multiple=True, default=("64x512@0", "64x512@1", "16x512@2"), show_default=True)
@click.option("--text", "names", multiple=True, default=("bundled", "pydoc@12"), show_default=True)
@click.option("--record", type=click.Path(path_type=Path), default=REPORT, show_default=True)
def main(model: str, kinds: tuple[str, ...], specs: tuple[str, ...], names: tuple[str, ...], record: Path) -> None:
    rows: list[dict[str, Any]] = []
    calibrations = [calibration(spec) for spec in specs]
    with tempfile.TemporaryDirectory() as folder:
        texts = [text(name, Path(folder)) for name in names]
        for kind in kinds:
            asked = [(NONE, {}), *((imatrix, made) for imatrix in (PLAIN, GUIDED) for made in calibrations)]
            for imatrix, made in asked:
                rows.append(measure(model, kind, imatrix, made, texts))
                click.echo(" ".join(shown(rows[-1])), err=True)
    found = ratios(rows)
    mean = statistics.geometric_mean(found)
    summary = {"mean": mean, "least": min(found), "largest": max(found)}
    heading = ["type", "importance", "calibration", *(f"KL, {each.name}" for each in texts)]
    console.table([heading, *map(shown, rows)], f"{model}: guided / plain {mean:.3f}")
    write_record(record, {"model": model, "rows": rows, "guided_over_plain": summary, "machine": machine()})
    sys.exit(int(mean >= 1))


if __name__ == "__main__":
    main()

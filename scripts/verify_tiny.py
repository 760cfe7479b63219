"""What 8, 4, 3 and 2 bits do to tiny-r1: one `r1quant verify` each, every metric, against bf16.

    python scripts/verify_tiny.py --method rtn --method gptq --method balanced

Each is a process of its own, as a user would start it, in an empty folder with an empty cache: the first one also asks
the baseline, the others take what it said. Writes reports/tiny-r1.json and prints the table.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import click
from measuring import R1QUANT, machine, run, write_record

from r1quant.cli import console
from r1quant.registry import PRESETS

REPORT = Path(__file__).resolve().parent.parent / "reports" / "tiny-r1.json"
KEPT = ("perplexity", "kl", "delta_p_rms", "top1", "top1_ci95", "by_class", "aime", "health", "hashes", "environment")


def measure(work: Path, method: str, bits: int, group_size: int, limit: int, samples: int) -> dict[str, Any]:
    """One row. work: the folder of all rows, with their cache."""
    name = f"{method}-{bits}"
    recipe = [
        "--preset" if method in PRESETS else "--method",
        method,
        "--bits",
        str(bits),
        "--group-size",
        str(group_size),
    ]
    if method == "rtn":
        recipe.append("--min-max")
    variables = {"R1QUANT_CACHE": str(work / "cache")}
    out, record = work / name, work / f"{name}.json"
    run([*R1QUANT, "quantize", "tiny-r1", "-o", str(out), *recipe], work / f"{name}.log", variables)
    asked = ["--aime", "mini", "--limit", str(limit), "--samples", str(samples), "--max-tokens", "900"]
    cost = run([*R1QUANT, "verify", str(out), *asked, "--record", str(record)], work / f"{name}.log", variables)
    found = json.loads(record.read_text("utf-8"))
    found["aime"].pop("table")
    return {"method": method, "bits": bits, "wall_seconds": cost.wall_seconds, **{key: found[key] for key in KEPT}}


def shown(row: dict[str, Any]) -> list[str]:
    aime, signs = row["aime"], row["health"]["quantized"]
    low, high = (100 * bound for bound in aime["delta_ci95"])
    return [
        f"{row['method']}, {row['bits']} bits",
        f"{row['kl']['mean']:.5f}",
        f"{row['by_class']['thinking']['kl']['mean']:.5f}",
        f"{100 * row['top1']:.2f}",
        f"{100 * aime['quantized']['accuracy']:.1f}",
        f"{100 * aime['delta']:+.1f}",
        f"{low:+.1f} .. {high:+.1f}",
        f"{aime['p_value']:.3f}",
        f"{100 * signs['closed_think']:.1f}",
        f"{row['wall_seconds']:.0f}",
    ]


@click.command(help=__doc__)
@click.option("--bits", type=int, multiple=True, default=(8, 4, 3, 2), show_default=True)
@click.option("--method", multiple=True, default=("gptq",), show_default=True, help="A method or a preset.")
@click.option("--group-size", default=128, show_default=True)
@click.option("--limit", default=400, show_default=True, help="Problems.")
@click.option("--samples", default=1, show_default=True, help="Answers to each.")
@click.option("--record", type=click.Path(path_type=Path), default=REPORT, show_default=True)
def main(
    bits: tuple[int, ...], method: tuple[str, ...], group_size: int, limit: int, samples: int, record: Path
) -> None:
    rows = []
    with tempfile.TemporaryDirectory() as work:
        for width in bits:
            for name in method:
                rows.append(measure(Path(work), name, width, group_size, limit, samples))
                click.echo(" ".join(shown(rows[-1])), err=True)
    heading = ["tiny-r1", "KL", "KL, thinking", "top-1 %", "accuracy %", "change", "95 %", "p", "closes %", "seconds"]
    baseline = rows[0]["aime"]["baseline"]
    console.table([heading, *map(shown, rows)], f"bf16: {100 * baseline['accuracy']:.1f} % of {limit} problems")
    write_record(record, {"group_size": group_size, "problems": limit, "rows": rows, "machine": machine()})


if __name__ == "__main__":
    main()

"""What quantizing a model of 8B shapes costs: wall time and peak memory, RTN and GPTQ, each in a process of its own.

    python scripts/shape_8b.py FOLDER

FOLDER is what synthetic_checkpoint.py wrote; it is written now if it is not there. Writes reports/shape-8b.json, and
exits 1 where a run takes more memory than it may.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from measuring import R1QUANT, machine, run, write_record
from synthetic_checkpoint import SHARD_BYTES, make

from r1quant.checkpoint.safetensors import open_folder

REPORT = Path(__file__).resolve().parent.parent / "reports" / "shape-8b.json"
RUNS = {
    "rtn": ["--method", "rtn", "--bits", "4", "--group-size", "128"],
    "gptq": ["--method", "gptq", "--bits", "4", "--group-size", "128", "--samples", "8", "--seq-len", "512"],
}
LIMITS = {"rtn": 3 * 10**9, "gptq": 6 * 10**9}  # peak resident memory, in bytes


def measure(model: Path, method: str, work: Path) -> dict[str, Any]:
    out = work / f"shape-8b-{method}"
    for folder in (out, out.with_name(f"{out.name}.run")):
        shutil.rmtree(folder, ignore_errors=True)
    cost = run(
        [*R1QUANT, "quantize", str(model), "-o", str(out), *RUNS[method], "--device", "cpu"], out.with_suffix(".log")
    )
    size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    shutil.rmtree(out)
    limit = LIMITS[method]
    within = cost.peak_rss_bytes < limit
    click.echo(
        f"{method}: {cost.wall_seconds:.1f} s, peak memory {cost.peak_rss_bytes / 1e9:.2f} GB, "
        f"{'under' if within else 'NOT under'} {limit / 1e9:.0f} GB"
    )
    return {"options": RUNS[method], **asdict(cost), "limit_bytes": limit, "within": within, "weight_bytes": size}


@click.command(help=__doc__)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--layers", default=4, show_default=True, help="Layers of the checkpoint, where it must be written.")
@click.option("--method", "methods", multiple=True, type=click.Choice(list(RUNS)), help="Only these.")
@click.option("--work", type=click.Path(path_type=Path), help="Where outputs go.  [default: beside MODEL]")
@click.option("--report", type=click.Path(path_type=Path), default=REPORT, help="Where the record goes.")
def main(model: Path, layers: int, methods: tuple[str, ...], work: Path | None, report: Path) -> None:
    if not (model / "config.json").is_file():
        make(model, layers, 0)
    checkpoint, work = open_folder(model), work or model.resolve().parent
    work.mkdir(parents=True, exist_ok=True)
    begun = machine()
    runs = {method: measure(model, method, work) for method in methods or RUNS}
    record = {
        "schema": "r1quant.shape/1",
        "shapes": "DeepSeek-R1-0528-Qwen3-8B",
        "layers": checkpoint.config["num_hidden_layers"],
        "weight_bytes": sum(info.nbytes for info in checkpoint.tensors.values()),
        "shard_bytes": SHARD_BYTES,
        "machine": begun,
        "runs": runs,
    }
    write_record(report, record)
    sys.exit(0 if all(row["within"] for row in runs.values()) else 1)


if __name__ == "__main__":
    main()

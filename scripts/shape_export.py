"""What exporting a model of 8B shapes costs, beside copying the same bytes: wall time and peak memory of the process.

    python scripts/shape_export.py FOLDER

FOLDER is what synthetic_checkpoint.py wrote; it is written now if it is not there. It is rounded to 4 bits once
(`quantize --method rtn`), and the result exported to each format and copied with a flush to the disk, in turn. Writes
reports/shape-export.json, and exits 1 where an export takes more memory than it may.
"""

from __future__ import annotations

import shutil
import statistics
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from measuring import R1QUANT, machine, run, write_record
from synthetic_checkpoint import make

from r1quant.checkpoint.safetensors import open_folder

REPORT = Path(__file__).resolve().parent.parent / "reports" / "shape-export.json"
LIMIT = 2 * 10**9  # peak resident memory, in bytes
COPY = """
import os, shutil, sys
source, target = sys.argv[1:]
os.mkdir(target)
for name in os.listdir(source):
    with open(os.path.join(source, name), "rb") as a, open(os.path.join(target, name), "wb") as b:
        shutil.copyfileobj(a, b, 1 << 24)
        b.flush()
        os.fsync(b.fileno())
"""


def quantized(model: Path) -> Path:
    """The 4-bit checkpoint beside the model, made where it is not there."""
    out = model.with_name(f"{model.name}-w4g128")
    if not out.exists():
        options = ["--method", "rtn", "--bits", "4", "--group-size", "128"]
        run([*R1QUANT, "quantize", str(model), "-o", str(out), *options], out.with_suffix(".log"))
    return out


def measure(source: Path, format: str, repeats: int, work: Path) -> dict[str, Any]:
    """Exports and copies in turn, `repeats` times; the median of each figure."""
    out, copied = work / f"{source.name}-{format}", work / f"{source.name}-{format}-copy"
    exports, copies = [], []
    size = 0
    for _ in range(repeats):
        for folder in (out, copied):
            shutil.rmtree(folder, ignore_errors=True)
        words = [*R1QUANT, "export", str(source), "--to", format, "-o", str(out)]
        exports.append(run(words, out.with_suffix(".log")))
        size = sum(path.stat().st_size for path in out.iterdir())
        copies.append(run([sys.executable, "-c", COPY, str(out), str(copied)], out.with_suffix(".log")))
    for folder in (out, copied):
        shutil.rmtree(folder, ignore_errors=True)
    wall = statistics.median(cost.wall_seconds for cost in exports)
    copy = statistics.median(cost.wall_seconds for cost in copies)
    peak = max(cost.peak_rss_bytes for cost in exports)
    click.echo(
        f"{format}: {wall:.1f} s for {size / 1e9:.2f} GB, {wall / copy:.1f} times a copy ({copy:.1f} s), "
        f"peak memory {peak / 1e9:.2f} GB, {'under' if peak < LIMIT else 'NOT under'} {LIMIT / 1e9:.0f} GB"
    )
    return {
        "bytes": size,
        "wall_seconds": wall,
        "copy_seconds": copy,
        "ratio_to_copy": wall / copy,
        "peak_rss_bytes": peak,
        "limit_bytes": LIMIT,
        "within": peak < LIMIT,
        "runs": [asdict(cost) for cost in exports],
        "copies": [asdict(cost) for cost in copies],
    }


@click.command(help=__doc__)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--layers", default=4, show_default=True, help="Layers of the checkpoint, where it must be written.")
@click.option("--format", "formats", multiple=True, default=("gguf", "onnx"), show_default=True)
@click.option("--repeats", default=3, show_default=True)
@click.option("--report", type=click.Path(path_type=Path), default=REPORT, help="Where the record goes.")
def main(model: Path, layers: int, formats: tuple[str, ...], repeats: int, report: Path) -> None:
    if not (model / "config.json").is_file():
        make(model, layers, 0)
    source, begun = quantized(model), machine()
    runs = {format: measure(source, format, repeats, model.resolve().parent) for format in formats}
    record = {
        "schema": "r1quant.shape-export/1",
        "shapes": "DeepSeek-R1-0528-Qwen3-8B",
        "layers": open_folder(model).config["num_hidden_layers"],
        "grid": {"bits": 4, "group_size": 128, "symmetric": True},
        "repeats": repeats,
        "machine": begun,
        "runs": runs,
    }
    write_record(report, record)
    sys.exit(0 if all(row["within"] for row in runs.values()) else 1)


if __name__ == "__main__":
    main()

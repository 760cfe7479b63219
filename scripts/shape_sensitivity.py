"""What the sensitivity pass takes on a model of 8B shapes, and that it goes on where it was killed.

    python scripts/shape_sensitivity.py FOLDER

FOLDER is what synthetic_checkpoint.py wrote; it is written now if it is not there. The pass runs as a process of its
own, is killed when its first layer is done, and started again. Writes reports/shape-sensitivity.json, and exits 1
where it took more memory than it may, or where a layer that was done was made again.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import click
from measuring import machine, run, write_record
from synthetic_checkpoint import make

REPORT = Path(__file__).resolve().parent.parent / "reports" / "shape-sensitivity.json"
LIMIT = 6 * 10**9  # peak resident memory, in bytes
PASS = """
import sys
from pathlib import Path
import numpy as np, torch
from r1quant.arch.tables import architecture_of
from r1quant.checkpoint.resolve import open_model
from r1quant.data.windows import Calibration
from r1quant.engine.forward import Decoder, pick_dtype
from r1quant.jobs.quantize.calibration import CalibrationRun
from r1quant.jobs.quantize.sensitivity import measured
from r1quant.progress import Silent

model, cache, windows, seq_len = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
checkpoint, device = open_model(model), torch.device("cpu")
tokens = np.random.default_rng(0).integers(0, checkpoint.config["vocab_size"], (windows, seq_len))
dtype = pick_dtype("auto", device)
decoder = Decoder(checkpoint, architecture_of(checkpoint.config), device, dtype, seq_len)
text = Calibration(tokens, "", "random tokens", windows, windows)
measured(decoder, CalibrationRun(text, "cpu", str(dtype), {"model": "shape"}), cache, Silent())
"""


@click.command(help=__doc__)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--layers", default=4, show_default=True, help="Layers of the checkpoint, where it must be written.")
@click.option("--windows", default=8, show_default=True)
@click.option("--seq-len", default=512, show_default=True)
@click.option("--report", type=click.Path(path_type=Path), default=REPORT, help="Where the record goes.")
def main(model: Path, layers: int, windows: int, seq_len: int, report: Path) -> None:
    if not (model / "config.json").is_file():
        make(model, layers, 0)
    cache, begun = model.with_name(f"{model.name}.sensitivity"), machine()
    shutil.rmtree(cache, ignore_errors=True)
    words = [sys.executable, "-c", PASS, str(model), str(cache), str(windows), str(seq_len)]
    killed_after, killed_peak = killed(words, cache)
    done = {path: path.stat().st_mtime_ns for path in cache.glob("*/layer-*.safetensors")}
    cost = run(words, model.with_suffix(".log"))
    kept = all(path.stat().st_mtime_ns == stamp for path, stamp in done.items())
    parts = [path.stat().st_size for path in cache.glob("*/layer-*.safetensors")]
    shutil.rmtree(cache)
    peak = max(killed_peak, cost.peak_rss_bytes)
    within = peak < LIMIT
    click.echo(
        f"killed after {killed_after:.0f} s with {len(done)} of {len(parts)} layers done, which were "
        f"{'kept' if kept else 'NOT kept'}; then {cost.wall_seconds:.0f} s, peak memory "
        f"{peak / 1e9:.2f} GB, {'under' if within else 'NOT under'} {LIMIT / 1e9:.0f} GB"
    )
    record = {
        "schema": "r1quant.shape-sensitivity/1",
        "shapes": "DeepSeek-R1-0528-Qwen3-8B",
        "layers": len(parts),
        "tokens": windows * seq_len,
        "killed_after_seconds": killed_after,
        "killed_peak_rss_bytes": killed_peak,
        "layers_kept": len(done) if kept else 0,
        "rest": asdict(cost),
        "bytes_kept": sum(parts),
        "limit_bytes": LIMIT,
        "within": within,
        "machine": begun,
    }
    write_record(report, record)
    sys.exit(0 if within and kept and 0 < len(done) < len(parts) else 1)


def killed(words: list[str], cache: Path) -> tuple[float, int]:
    """Starts the pass and kills it when a layer is done. Returns the seconds it had and its peak memory in bytes."""
    begun = time.monotonic()
    process = subprocess.Popen(words)
    while process.poll() is None and not any(cache.glob("*/layer-*.safetensors")):
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    _, _, usage = os.wait4(process.pid, 0)
    return time.monotonic() - begun, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()

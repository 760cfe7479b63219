"""Times `verify` where the baseline is known against scoring the text once with transformers, on SmolLM2, W4.

    python scripts/bench_verify.py --text text.txt

Whole processes that take turns. Writes reports/verify-cost.json; exits 1 where verify takes longer by the median, or
where its peak memory is more than the bf16 model and 1 GB.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from pathlib import Path

import click
import smollm2
from measuring import R1QUANT, Cost, machine, run, write_record

from r1quant.checkpoint.resolve import open_model
from r1quant.cli import console

REPORT = Path(__file__).resolve().parent.parent / "reports" / "verify-cost.json"
ROOM = 10**9  # bytes beside the model


@click.command(help=__doc__)
@click.option("--text", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True)
@click.option("--windows", default=24, show_default=True)
@click.option("--seq-len", default=512, show_default=True)
@click.option("--repeats", default=5, show_default=True)
@click.option("--record", type=click.Path(path_type=Path), default=REPORT, show_default=True)
def main(text: Path, windows: int, seq_len: int, repeats: int, record: Path) -> None:
    shape = ["--windows", str(windows), "--seq-len", str(seq_len)]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        model = smollm2.export(open_model(smollm2.gguf()), work / "model")
        out, log, found = work / "w4", work / "log", work / "found.json"
        variables = {"R1QUANT_CACHE": str(work / "cache")}
        run([*R1QUANT, "quantize", str(model), "--method", "rtn", "--group-size", "64", "-o", str(out)], log)
        verify = [*R1QUANT, "verify", str(out), "--text", str(text), *shape, "--record", str(found)]
        first = run(verify, log, variables)
        once = [sys.executable, str(Path(__file__).with_name("score_once.py")), str(model), str(text)]
        costs: dict[str, list[Cost]] = {"verify": [], "score once": []}
        for turn in range(repeats):
            for name in list(costs)[:: 1 if turn % 2 else -1]:
                command = verify if name == "verify" else [*once, str(windows), str(seq_len)]
                costs[name].append(run(command, log, variables))
                if name == "score once":
                    perplexity = float(log.read_text("utf-8").split()[-1])
        report = json.loads(found.read_text("utf-8"))
        size = sum(info.nbytes for info in open_model(model).tensors.values())
    apart = abs(report["perplexity"]["baseline"] / perplexity - 1)
    if not report["text"]["baseline_cached"] or apart > 1e-4:
        raise click.ClickException(f"not the same measurement: perplexities differ by {apart:.1e}")
    pairs = list(zip(costs["verify"], costs["score once"], strict=True))
    ratios = {
        "wall": statistics.median(ours.wall_seconds / theirs.wall_seconds for ours, theirs in pairs),
        "processor": statistics.median(ours.cpu_seconds / theirs.cpu_seconds for ours, theirs in pairs),
    }
    peak = max(cost.peak_rss_bytes for cost in costs["verify"])
    rows = {
        name: {
            "wall_seconds": statistics.median(cost.wall_seconds for cost in given),
            "cpu_seconds": statistics.median(cost.cpu_seconds for cost in given),
            "peak_rss_bytes": max(cost.peak_rss_bytes for cost in given),
        }
        for name, given in (("verify, baseline not known", [first]), *costs.items())
    }
    heading = ["whole process, median", "wall s", "cpu s", "peak GB"]
    table = [
        [name, f"{row['wall_seconds']:.1f}", f"{row['cpu_seconds']:.1f}", f"{row['peak_rss_bytes'] / 1e9:.2f}"]
        for name, row in rows.items()
    ]
    title = f"{windows} x {seq_len} tokens, {repeats} rounds: verify / score once {ratios['wall']:.3f} by wall time, "
    console.table([heading, *table], f"{title}{ratios['processor']:.3f} by processor time")
    limit = size + ROOM
    write_record(
        record,
        {"windows": windows, "seq_len": seq_len, "repeats": repeats, "rows": rows, "ratios": ratios,
         "peak_limit_bytes": limit, "perplexities_apart": apart, "machine": machine()},
    )  # fmt: skip
    sys.exit(int(ratios["wall"] > 1 or peak > limit))


if __name__ == "__main__":
    main()

"""r1quant and gptqmodel side by side: GPTQ with 4 bits on the same model, the same tokens, the same machine.

    python scripts/compare_peers.py --text-calib CALIB.txt --text-eval TEST.txt

Both quantize one bf16 SmolLM2 folder in processes of their own, in turn, after one untimed run of each on a model of
one layer, so that neither pays for compilation. Both results are scored by `r1quant verify` in float32. Writes
reports/peers-gptq.json and reports/peers-gptq.md. Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import numpy as np
import smollm2
from conformance.environments import HERE, interpreter
from measuring import R1QUANT, Cost, machine, run

from r1quant import calibration
from r1quant.cli import console
from r1quant.sources import open_model
from r1quant.tokenizer import Tokenizer

ROOT = HERE.parent.parent
BITS, GROUP_SIZE = 4, 64
WINDOWS, SEQ_LEN = 24, 512  # of the measurement
TOOLS = ("r1quant", "gptqmodel")


@dataclass(frozen=True)
class Setup:
    """What both tools are given. `tokens` holds the windows that r1quant takes from `text`."""

    model: Path
    text: Path
    tokens: Path
    samples: int
    seq_len: int
    batch_size: int
    python: Path

    def command(self, tool: str, out: Path) -> list[str]:
        grid = ["--bits", str(BITS), "--group-size", str(GROUP_SIZE)]
        if tool == "r1quant":
            windows = ["--calib", str(self.text), "--samples", str(self.samples), "--seq-len", str(self.seq_len)]
            return [*R1QUANT, "quantize", str(self.model), "-o", str(out), *grid, *windows, "--device", "cpu"]
        script = str(HERE / "gptqmodel_quantize.py")
        batch = ["--batch-size", str(self.batch_size)]
        return [str(self.python), script, str(self.model), str(self.tokens), str(out), *grid, *batch]


def quantize(setup: Setup, tool: str, work: Path) -> Cost:
    out = work / f"{tool}-w{BITS}g{GROUP_SIZE}"
    for folder in (out, out.with_name(f"{out.name}.run")):
        shutil.rmtree(folder, ignore_errors=True)
    cost = run(setup.command(tool, out), work / f"{tool}.log")
    console.note(f"{tool}: {cost.wall_seconds:.1f} s wall, {cost.peak_rss_bytes / 1e6:.0f} MB")
    return cost


def quality(setup: Setup, tool: str, text: Path, windows: int, work: Path) -> dict[str, Any]:
    """What `r1quant verify` says of a result, the same for whoever made it."""
    out, log = work / f"{tool}-w{BITS}g{GROUP_SIZE}", work / f"{tool}-verify.log"
    wanted = ["--baseline", str(setup.model), "--text", str(text), "--dtype", "float32", "--device", "cpu"]
    run([*R1QUANT, "verify", str(out), *wanted, "--windows", str(windows), "--seq-len", str(SEQ_LEN), "--json"], log)
    record = json.loads(next(line for line in log.read_text("utf-8").splitlines() if line.startswith("{")))
    kept = {key: record[key] for key in ("perplexity", "kl", "top1", "tokens", "text", "dtype")}
    return kept | {"weight_bytes": sum(path.stat().st_size for path in out.glob("*.safetensors"))}


def middle(costs: Sequence[Cost]) -> dict[str, float]:
    """The median of every figure, each on its own."""
    rows = [asdict(cost) for cost in costs]
    return {key: statistics.median(row[key] for row in rows) for key in rows[0]}


def markdown(record: dict[str, Any]) -> str:
    """The record for people."""
    one, other = (record["tools"][tool] for tool in TOOLS)
    ratios = record["ratios"]
    lines = ["| | " + " | ".join(f"{tool} {record['tools'][tool]['version']}" for tool in TOOLS) + " | ratio |"]
    lines.append("|---|---:|---:|---:|")

    def row(title: str, a: float, b: float, form: str, ratio: float) -> None:
        lines.append(f"| {title} | {a:{form}} | {b:{form}} | {ratio:.2f} |")

    for key, title, unit, form in (
        ("wall_seconds", "wall time, s", 1, ".1f"),
        ("cpu_seconds", "CPU time, s", 1, ".1f"),
        ("peak_rss_bytes", "peak memory, MB", 1e6, ".0f"),
    ):
        row(title, one["median"][key] / unit, other["median"][key] / unit, form, ratios[key])
    for path, form in ((("kl", "mean"), ".4f"), (("perplexity", "quantized"), ".3f")):
        a, b = (tool["quality"][path[0]][path[1]] for tool in (one, other))
        row(f"{' '.join(path)}", a, b, form, b / a)
    row("same first token", one["quality"]["top1"], other["quality"]["top1"], ".4f", ratios["top1"])
    where, calib = record["machine"], record["calibration"]
    note = (
        f"SmolLM2-135M-Instruct (bf16, perplexity {one['quality']['perplexity']['baseline']:.3f}), GPTQ, {BITS} bits, "
        f"groups of {GROUP_SIZE}, symmetric; calibrated on {calib['samples']} x {calib['seq_len']} tokens, the same "
        f"for both; median of {record['repeats']} alternating runs of the whole process on {where['cores']} cores "
        f"({where['cpu']}). KL in nats against the bf16 weights, both models run in float32 on "
        f"{one['quality']['tokens']} tokens. The ratio is gptqmodel / r1quant."
    )
    return "\n".join([note, "", *lines, ""])


@click.command(help=__doc__)
@click.option("--text-calib", type=click.Path(path_type=Path, exists=True), required=True, help="Calibration text.")
@click.option("--text-eval", type=click.Path(path_type=Path, exists=True), required=True, help="Text to measure on.")
@click.option("--repeats", default=3, show_default=True, help="Timed runs of each tool.")
@click.option("--samples", default=64, show_default=True, help="Calibration windows.")
@click.option("--seq-len", default=512, show_default=True, help="Tokens in a calibration window.")
@click.option("--windows", default=WINDOWS, show_default=True, help="Windows that quality is measured on.")
@click.option("--layers", type=int, help="Only so many decoder layers of the model, to try this script.")
@click.option("--batch-size", default=1, show_default=True, help="gptqmodel's own; 1 is its default.")
@click.option("--python", type=click.Path(path_type=Path), help="gptqmodel's interpreter, if it is there already.")
@click.option("--work", type=click.Path(path_type=Path), default=ROOT / "build" / "peers", help="Scratch folder.")
@click.option("--reports", type=click.Path(path_type=Path), default=ROOT / "reports", help="Where the reports go.")
def main(
    text_calib: Path, text_eval: Path, repeats: int, samples: int, seq_len: int, windows: int, layers: int | None,
    batch_size: int, python: Path | None, work: Path, reports: Path,
) -> None:  # fmt: skip
    work.mkdir(parents=True, exist_ok=True)
    source = open_model(smollm2.gguf())
    python = python or interpreter("gptqmodel")
    loaded = calibration.load(str(text_calib), Tokenizer.of(source), samples, seq_len, 0)
    np.save(work / "tokens.npy", loaded.tokens)
    np.save(work / "few.npy", loaded.tokens[:1])
    whole, one = (smollm2.export(source, work / f"smollm2-{n or 'all'}-layers", n) for n in (layers, 1))
    setup = Setup(whole, text_calib, work / "tokens.npy", samples, seq_len, batch_size, python)
    for tool in TOOLS:
        quantize(Setup(one, text_calib, work / "few.npy", 1, seq_len, batch_size, python), tool, work)
    costs: dict[str, list[Cost]] = {tool: [] for tool in TOOLS}
    begun = machine()
    for _ in range(repeats):
        for tool in TOOLS:
            costs[tool].append(quantize(setup, tool, work))
    versions = {"r1quant": metadata.version("r1quant"), "gptqmodel": _version(python)}
    tools = {
        tool: {
            "version": versions[tool],
            "median": middle(costs[tool]),
            "runs": [asdict(cost) for cost in costs[tool]],
            "quality": quality(setup, tool, text_eval, windows, work),
        }
        for tool in TOOLS
    }
    mine, theirs = (tools[tool] for tool in TOOLS)
    ratios = {key: theirs["median"][key] / value for key, value in mine["median"].items()}
    ratios["top1"] = theirs["quality"]["top1"] / mine["quality"]["top1"]
    record = {
        "schema": "r1quant.peers/1",
        "model": "SmolLM2-135M-Instruct",
        "layers": layers,
        "calibration": {"sha256": loaded.sha256, "samples": samples, "seq_len": seq_len, "source": text_calib.name},
        "grid": {"bits": BITS, "group_size": GROUP_SIZE, "symmetric": True},
        "repeats": repeats,
        "batch_size": batch_size,
        "machine": begun,
        "tools": tools,
        "ratios": ratios,
    }
    reports.mkdir(parents=True, exist_ok=True)
    (reports / "peers-gptq.json").write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    (reports / "peers-gptq.md").write_text(markdown(record), "utf-8")
    click.echo(markdown(record))


def _version(python: Path) -> str:
    """gptqmodel's version as its environment has it, without importing it."""
    asked = [str(python), "-c", "from importlib.metadata import version; print(version('gptqmodel'))"]
    return subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()

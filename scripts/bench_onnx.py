"""Measures decoding with onnxruntime-genai: our ONNX folder against that of its own builder, on SmolLM2.

    python scripts/bench_onnx.py

Both have 4-bit linears in blocks of 64 and a float32 head, and compute at the accuracy level that the builder
chooses (4); ours is measured at level 1 too, its default. All are loaded at once and take turns, so that whatever
else the machine does slows all. How far each level is from exact arithmetic is measured on a text. Writes
reports/onnx-decode.json; exits 1 where ours is slower by the median of the rounds, which a repeat may move by 0.03.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import smollm2
from conformance.comparison import distance
from conformance.environments import HERE, interpreter
from conformance.foreign import log_softmax
from measuring import machine, write_record

import r1quant
from r1quant.arch.tables import architecture_of
from r1quant.backends.onnxruntime import OnnxRuntime
from r1quant.backends.torch import TorchModel
from r1quant.checkpoint.resolve import open_model
from r1quant.checkpoint.tokenizer import Tokenizer
from r1quant.cli import console
from r1quant.data import windows
from r1quant.formats.onnx.options import OnnxOptions
from r1quant.formats.onnx.writer import write
from r1quant.jobs.artifacts import open_artifact
from r1quant.storage import provenance

REPORT = HERE.parent.parent / "reports" / "onnx-decode.json"
OURS, THEIRS, EXACT = "r1quant", "builder", "r1quant, level 1"
BUILDER = ("-p", "int4", "-e", "cpu", "--extra_options", "block_size=64", "nodes_to_exclude=/lm_head/MatMul")
BAR = 1.0
KINDS = ("prompt", "decode", "processor")


def make(work: Path, python: Path) -> dict[str, Path]:
    """The folders. The builder takes the float model and rounds to nearest, as we do."""
    checkpoint = open_model(smollm2.gguf())
    arch = architecture_of(checkpoint.config)
    r1quant.quantize(smollm2.gguf(), work / "quantized", bits=4, group_size=64, method="rtn")
    folders = {OURS: work / "level-4", EXACT: work / "level-1", THEIRS: work / "builder"}
    for name, level in ((OURS, 4), (EXACT, 1)):
        folders[name].mkdir()
        write(open_artifact(work / "quantized"), arch, folders[name], OnnxOptions(accuracy_level=level))
    floats = smollm2.export(checkpoint, work / "floats")
    program = [str(python), "-m", "onnxruntime_genai.models.builder", "-i", str(floats), "-o", str(folders[THEIRS])]
    log = work / "builder.log"
    with log.open("wb") as file:
        done = subprocess.run([*program, "-c", str(work / "cache"), *BUILDER], check=False, stdout=file, stderr=file)
    if done.returncode:
        raise click.ClickException(f"the builder failed:\n{log.read_text('utf-8', 'replace')[-1500:]}")
    return folders


def decode(python: Path, folders: Mapping[str, Path], work: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What genai_decode.py prints."""
    request = work / "request.json"
    request.write_text(json.dumps({"folders": {n: str(f) for n, f in folders.items()}, **settings}), "utf-8")
    program = [str(python), str(HERE / "genai_decode.py"), str(request)]
    found: dict[str, Any] = json.loads(subprocess.run(program, check=True, stdout=subprocess.PIPE).stdout)
    return found


def from_exact(work: Path, folders: Mapping[str, Path], tokens: np.ndarray) -> dict[str, dict[str, float]]:
    """How far our folders are from the same weights in torch, in float32."""
    artifact = open_artifact(work / "quantized")
    exact = log_softmax(TorchModel(artifact, architecture_of(artifact.config)).logits(tokens))
    return {n: distance(exact, log_softmax(OnnxRuntime(folders[n]).logits(tokens))) for n in (OURS, EXACT)}


def speeds(found: Mapping[str, Any], prompt: int, new: int) -> dict[str, dict[str, list[float]]]:
    """Tokens a second in each round."""
    counts = {"prompt": prompt, "decode": new - 1, "processor": new - 1}
    return {
        name: {kind: [counts[kind] / turn[kind] for turn in entry["seconds"]] for kind in KINDS}
        for name, entry in found.items()
    }


@click.command(help=__doc__)
@click.option("--prompt-tokens", default=64, show_default=True)
@click.option("--new-tokens", default=33, show_default=True, help="The first of them counts to the prompt.")
@click.option("--rounds", default=15, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--python", type=click.Path(path_type=Path), help="An interpreter with onnxruntime-genai.")
@click.option("--report", type=click.Path(path_type=Path), default=REPORT, help="Where the record goes.")
def main(prompt_tokens: int, new_tokens: int, rounds: int, threads: int, python: Path | None, report: Path) -> None:
    checkpoint, before, place = open_model(smollm2.gguf()), machine(), python or interpreter("genai")
    text = windows.evaluation_text(
        None, Tokenizer.of(checkpoint), 1, 256, vocabulary=checkpoint.config["vocab_size"]
    ).tokens[0]
    settings = {"prompt": text[:prompt_tokens].tolist(), "count": new_tokens, "threads": threads, "rounds": rounds}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        folders = make(work, place)
        sizes = {n: sum(p.stat().st_size for p in f.glob("model.onnx*")) for n, f in folders.items()}
        found = speeds(decode(place, folders, work, settings), prompt_tokens, new_tokens)
        distances = from_exact(work, folders, text)
    medians = {name: {kind: statistics.median(found[name][kind]) for kind in KINDS} for name in found}
    ratios = {
        kind: statistics.median(a / b for a, b in zip(found[OURS][kind], found[THEIRS][kind], strict=True))
        for kind in KINDS
    }
    record = {
        "schema": "r1quant.onnx-decode/1",
        "passed": ratios["decode"] >= BAR,
        "model": checkpoint.name,
        "settings": {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "rounds": rounds, "threads": threads},
        "builder": " ".join(BUILDER),
        "decode_ratio": ratios["decode"],
        "ratios": ratios,
        "bytes": sizes,
        "medians": medians,
        "rounds": found,
        "distance_from_exact": distances,
        "machine": before,
        "environment": provenance.environment(),
    }
    write_record(report, record)
    lines = [["folder", "bytes", "prompt tokens/s", "decoded tokens/s", "decoded tokens a processor second", "mean KL"]]
    for name, values in medians.items():
        kl = f"{distances[name]['mean_kl']:.1e}" if name in distances else ""
        lines.append([name, str(sizes[name]), *(f"{values[kind]:.1f}" for kind in KINDS), kl])
    lines.append(["ours / builder", "", *(f"{ratios[kind]:.3f}" for kind in KINDS), ""])
    console.table(lines)
    sys.exit(0 if record["passed"] else 1)


if __name__ == "__main__":
    main()

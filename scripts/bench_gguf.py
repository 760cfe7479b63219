"""Measures decoding with llama.cpp: our exported Q4_0 against the Q4_0 that llama.cpp makes itself, on SmolLM2.

    python scripts/bench_gguf.py

Both files are loaded at once and take turns, so that whatever else the machine does slows both. Writes
reports/gguf-decode.json; exits 1 where ours is slower by the median of the rounds, which a repeat may move by 0.03.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import smollm2
from measuring import machine, write_record

import r1quant
from r1quant.arch.tables import architecture_of
from r1quant.backends.llamacpp import LlamaCpp
from r1quant.checkpoint.gguf.header import read_gguf_header
from r1quant.checkpoint.resolve import open_model
from r1quant.checkpoint.tokenizer import Tokenizer
from r1quant.cli import console
from r1quant.data import windows
from r1quant.formats.gguf.kquants import requantize
from r1quant.formats.gguf.options import GgufOptions
from r1quant.formats.gguf.write import write
from r1quant.jobs.artifacts import open_artifact
from r1quant.storage import provenance

REPORT = Path(__file__).resolve().parent.parent / "reports" / "gguf-decode.json"
OURS, THEIRS = "r1quant", "llama.cpp"
BAR = 1.0
MEASURED = ("prompt", "decode", "processor")


def make(work: Path, group_size: int) -> dict[str, Path]:
    """The two files. The embedding, which is the head too, is Q8_0 in both: llama.cpp's choice for this model."""
    source = smollm2.gguf()
    arch = architecture_of(open_model(source).config)
    r1quant.quantize(source, work / "quantized", bits=4, group_size=group_size, method="rtn")
    ours, floats, theirs = work / "ours.gguf", work / "floats.gguf", work / "theirs.gguf"
    write(open_artifact(work / "quantized"), arch, ours, GgufOptions(embedding="q8_0"))
    write(open_artifact(source), arch, floats, GgufOptions("bf16"))
    requantize(floats, theirs, "Q4_0")
    return {OURS: ours, THEIRS: theirs}


def types(path: Path) -> dict[str, int]:
    """The ggml type of every tensor, by its name."""
    return {name: tensor.kind for name, tensor in read_gguf_header(path).tensors.items()}


def measure(model: LlamaCpp, prompt: np.ndarray, new_tokens: int) -> dict[str, float]:
    """Tokens a second: of the prompt, of what follows it, and of the latter by processor time, all threads together."""
    begun = time.perf_counter()
    stream = model.stream(prompt)
    next(stream)
    first, used = time.perf_counter(), time.process_time()
    for _ in range(new_tokens):
        next(stream)
    wall, processor = time.perf_counter() - first, time.process_time() - used
    return {"prompt": len(prompt) / (first - begun), "decode": new_tokens / wall, "processor": new_tokens / processor}


def rounds(
    files: Mapping[str, Path], prompt: np.ndarray, new_tokens: int, count: int, threads: int
) -> dict[str, list[dict[str, float]]]:
    """`count` measurements of each file in turns, after one of each that does not count."""
    models = {name: LlamaCpp(path, len(prompt) + new_tokens + 1, threads) for name, path in files.items()}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in files}
    for turn in range(count + 1):
        for name in sorted(models, reverse=bool(turn % 2)):
            measured = measure(models[name], prompt, new_tokens)
            if turn:
                found[name].append(measured)
    for model in models.values():
        model.close()
    return found


@click.command(help=__doc__)
@click.option("--group-size", default=32, show_default=True, help="Of our quantization; Q4_0 has blocks of 32.")
@click.option("--prompt-tokens", default=64, show_default=True)
@click.option("--new-tokens", default=32, show_default=True)
@click.option("--rounds", "count", default=15, show_default=True)
@click.option("--threads", default=1, show_default=True, help="On a busy machine, several wait for each other.")
@click.option("--report", type=click.Path(path_type=Path), default=REPORT, help="Where the record goes.")
def main(group_size: int, prompt_tokens: int, new_tokens: int, count: int, threads: int, report: Path) -> None:
    checkpoint, before = open_model(smollm2.gguf()), machine()
    text = windows.evaluation_text(
        None, Tokenizer.of(checkpoint), 1, prompt_tokens, vocabulary=checkpoint.config["vocab_size"]
    )
    with tempfile.TemporaryDirectory() as folder:
        files = make(Path(folder), group_size)
        kinds, sizes = (
            {name: types(path) for name, path in files.items()},
            {n: p.stat().st_size for n, p in files.items()},
        )
        found = rounds(files, text.tokens[0], new_tokens, count, threads)
    medians = {
        name: {key: statistics.median(turn[key] for turn in turns) for key in MEASURED} for name, turns in found.items()
    }
    ratios = {
        key: statistics.median(a[key] / b[key] for a, b in zip(found[OURS], found[THEIRS], strict=True))
        for key in MEASURED
    }
    ratio = ratios["decode"]
    record: dict[str, Any] = {
        "schema": "r1quant.gguf-decode/1",
        "passed": ratio >= BAR and kinds[OURS] == kinds[THEIRS],
        "model": checkpoint.name,
        "settings": {
            "group_size": group_size, "prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "rounds": count,
            "threads": threads,
        },
        "decode_ratio": ratio,
        "ratios": ratios,
        "same_tensor_types": kinds[OURS] == kinds[THEIRS],
        "bytes": sizes,
        "medians": medians,
        "rounds": found,
        "machine": before,
        "environment": provenance.environment(),
    }  # fmt: skip
    write_record(report, record)
    lines = [["Q4_0 made by", "bytes", "prompt tokens/s", "decoded tokens/s", "decoded tokens a processor second"]]
    lines += [[name, str(sizes[name]), *(f"{m[key]:.1f}" for key in MEASURED)] for name, m in medians.items()]
    lines.append(["ours / theirs", "", *(f"{ratios[key]:.3f}" for key in MEASURED)])
    console.table(lines)
    sys.exit(0 if record["passed"] else 1)


if __name__ == "__main__":
    main()

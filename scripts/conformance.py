"""Proves that other programs read our checkpoints as we do: same weights bit for bit, same log-probabilities.

    python scripts/conformance.py

Models are quantized with r1quant, loaded by each reader in an environment of its own, and scored there on the same
tokens in float32. Writes reports/conformance.json; exits 1 where a reader and r1quant do not agree.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import smollm2
import torch
from conformance.environments import HERE, interpreter
from conformance.foreign import digest, log_softmax
from conformance.readers import LIMIT, READERS, Expected, read

import r1quant
from r1quant import calibration, provenance
from r1quant.archs import architecture_of
from r1quant.backends.torch import final_hidden
from r1quant.cli import console
from r1quant.errors import R1QuantError
from r1quant.formats import gptq
from r1quant.forward import Decoder
from r1quant.sources import open_model
from r1quant.tokenizer import Tokenizer

REPORT = HERE.parent.parent / "reports" / "conformance.json"


@dataclass(frozen=True)
class Case:
    """One checkpoint to make: options are those of r1quant.quantize."""

    model: str
    bits: int
    group_size: int
    symmetric: bool = True
    method: str = "gptq"
    format: str = "gptq"

    @property
    def name(self) -> str:
        kind = "" if self.symmetric else "-asym"
        return f"{Path(self.model).name}-{self.format}-w{self.bits}g{self.group_size}{kind}"

    def options(self) -> dict[str, Any]:
        chosen = {key: value for key, value in asdict(self).items() if key != "model"}
        return chosen | ({"samples": 4, "seq_len": 256} if self.method == "gptq" else {})


SMALL = (Case("", 4, 32), Case("", 4, 32, symmetric=False), Case("", 8, 32), Case("", 8, 32, symmetric=False))
CASES = (
    Case("smollm2", 4, 64),
    Case("smollm2", 8, 64, method="rtn"),
    *(replace(case, model="tiny-r1") for case in SMALL),
)


def prepare(case: Case, work: Path, count: int) -> Expected:
    """Quantizes, and reads the result back with r1quant."""
    folder, path = work / case.name, work / f"{case.name}.npy"
    r1quant.quantize(smollm2.gguf() if case.model == "smollm2" else case.model, folder, **case.options())
    checkpoint = open_model(folder)
    config, weights = checkpoint.config, gptq.open_weights(checkpoint)
    text = calibration.evaluation_text(None, Tokenizer.of(checkpoint), 1, count, vocabulary=config["vocab_size"])
    np.save(path, text.tokens[0])
    decoder = Decoder(weights, architecture_of(config), torch.device("cpu"), torch.float32, count)
    hidden = final_hidden(decoder, text.tokens, lambda: None)[0]
    with torch.inference_mode():
        logits = decoder.head().logits(hidden).numpy()
    linears = filter(None, weights.tensors.values())
    hashes = {name: digest(weights.qlinear(name).dequantize()) for name in linears}
    return Expected(case.name, case.format, case.symmetric, folder, path, hashes, log_softmax(logits))


def show(rows: list[dict[str, Any]]) -> None:
    lines = [["reader", "checkpoint", "equal weights", "max |dlogp|", "mean KL", "same top-1", ""]]
    for row in rows:
        if "error" in row:
            cells = [*[""] * 4, "refused, as known" if row["passed"] else "FAILED"]
            console.note(f"{row['reader']}, {row['checkpoint']}: {row['error'].strip().splitlines()[-1]}")
        else:
            equal = f"{row['linears'] - len(row['differing_linears'])} of {row['linears']}"
            numbers = (f"{row[key]:.2e}" for key in ("max_delta_log_probability", "mean_kl"))
            cells = [equal, *numbers, f"{row['same_top1']:.4f}", "ok" if row["passed"] else "FAILED"]
        lines.append([row["reader"], row["checkpoint"], *cells])
    console.table(lines)


@click.command(help=__doc__)
@click.option("--reader", "readers", multiple=True, type=click.Choice([r.name for r in READERS]), help="Only these.")
@click.option("--model", "models", multiple=True, help="Only these: smollm2, tiny-r1, or any folder or GGUF file.")
@click.option("--python", multiple=True, metavar="[ENVIRONMENT=]PATH", help="An interpreter that is there already.")
@click.option("--tokens", default=256, show_default=True, help="How many tokens are scored.")
@click.option("--report", type=click.Path(path_type=Path), default=REPORT, help="Where the record goes.")
def main(readers: tuple[str, ...], models: tuple[str, ...], python: tuple[str, ...], tokens: int, report: Path) -> None:
    pythons = {name or READERS[0].environment: path for name, _, path in (entry.rpartition("=") for entry in python)}
    cases = [case for case in CASES if not models or case.model in models]
    known = {case.model for case in CASES}
    cases += [replace(case, model=model) for model in models if model not in known for case in SMALL]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        work, expected = Path(folder), []
        for case in cases:
            console.note(f"quantizing {case.name}")
            try:
                expected.append(prepare(case, work, tokens))
            except R1QuantError as error:
                rows.append({"reader": "r1quant", "checkpoint": case.name, "passed": False, "error": error.message})
        for reader in (reader for reader in READERS if not readers or reader.name in readers):
            console.note(f"reading with {reader.name}")
            place = pythons.get(reader.environment) or interpreter(reader.environment)
            rows += read(reader, Path(place), expected, work)
    passed = bool(rows) and all(row["passed"] for row in rows)
    record = {
        "schema": "r1quant.conformance/1",
        "passed": passed,
        "limit": LIMIT,
        "tokens": tokens,
        "environment": provenance.environment(),
        "rows": rows,
    }
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    show(rows)
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()

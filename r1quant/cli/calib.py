"""r1quant calib"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from r1quant.cli import console
from r1quant.cli.settings import pick_model
from r1quant.core.formatting import seconds_text


@click.group()
def calib() -> None:
    """Text to calibrate on: have a model write its own, and see what a text holds."""


@calib.command()
@click.argument("model", required=False)
@click.option("--prompts", help="A JSONL file of prompts.  [default: 128 bundled ones; for tiny-r1, its own problems]")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="The JSONL file.  [default: MODEL-self.jsonl]")
@click.option("--limit", type=int, help="Only the first so many prompts.")
@click.option("--samples-per-prompt", type=int, help="Texts for each prompt.  [default: 1]")
@click.option("--max-tokens", type=int, help="Of a text; longer ones are cut off there, and kept.  [default: 4096]")
@click.option("--temperature", type=float, help="0 is greedy.  [default: 0.6]")
@click.option("--top-p", type=float, help="Of the draws.  [default: 0.95]")
@click.option("--seed", type=int, help="Of the draws.  [default: 0]")
@click.option("--backend", help="Runs MODEL: torch, onnxruntime, llamacpp, openai, mock or auto.  [default: auto]")
@click.option(
    "--base-url", "base_urls", multiple=True, help="A server that runs MODEL: http://localhost:8000/v1. Repeatable."
)
@click.option("--served-model", "served", help="What the server calls MODEL.  [default: the first it lists]")
@click.option("--concurrency", type=int, help="Requests to servers at a time.  [default: 8]")
@click.option("--patience", type=float, help="Seconds to wait for servers of which none answers.  [default: 300]")
@click.option("--device", help="cpu, cuda, or auto.  [default: auto]")
@click.option("--dtype", help="Precision of torch: float32, bfloat16, float16 or auto.  [default: auto]")
@console.common
def generate(model: str | None, out: Path | None, as_json: bool, debug: bool, **given: Any) -> int:
    """Have MODEL answer prompts in its own chat format, and write what it says, reasoning and all, for --calib.

    Answers are kept in $R1QUANT_CACHE (~/.cache/r1quant) as they arrive: interrupted, the same command goes on, and
    ends in the same file. Its first line says how the others were drawn.
    """
    from r1quant.jobs.generate.run import generate as job
    from r1quant.jobs.generate.selftext import GenerateOptions, summary_line

    chosen = {key: value for key, value in given.items() if value not in (None, ())}
    if "base_urls" in chosen:
        chosen.setdefault("backend", "openai")
    name = pick_model(model)
    with console.watching() as progress:
        done = job(name, out, GenerateOptions.of(chosen), progress)

    def show() -> None:
        again = " (it was complete already)" if done.already_complete else ""
        following = f"r1quant quantize {shlex.quote(name)} --calib {shlex.quote(str(done.out))}"
        written = summary_line(done.header["summary"])
        rows = [["written", f"{done.out}{again}"], ["what", written], ["time", seconds_text(done.seconds)]]
        console.table([*rows, ["next", following]], heading=False)

    console.emit(done.as_dict(), as_json, show)
    return 0


@calib.command("show")
@click.argument("text", required=False)
@click.option("--model", help="Whose tokenizer counts.  [default: as everywhere]")
@console.common
def show_text(text: str | None, model: str | None, as_json: bool, debug: bool) -> int:
    """Count what TEXT, a text or JSONL file, holds: documents, tokens, and how many of them are reasoning.

    TEXT left out is the bundled calibration text.
    """
    from r1quant.jobs.generate.run import show as job

    found = job(text, pick_model(model)).as_dict()

    def show() -> None:
        rows = [[key, str(found[key])] for key in ("documents", "tokens", "longest")]
        if found["thinking_share"] is not None:
            rows.append(["inside <think>", f"{100 * found['thinking_share']:.1f} % of the tokens"])
            rows.append(["end inside <think>", f"{found['unclosed']} documents"])
        if found["header"] is not None:
            header = found["header"]
            rows.append(["written by", f"{header.get('model')}, {header.get('backend')}, {header.get('sampling')}"])
        console.table(rows, found["source"], heading=False)

    console.emit(found, as_json, show)
    return 0

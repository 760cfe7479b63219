"""r1quant bench"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from r1quant.cli import console
from r1quant.core.formatting import bytes_text

SPREAD = ("median", "min", "max")
BACKENDS = "auto, torch, onnxruntime, llamacpp, openai"


@click.command()
@click.argument("out", required=False)
@click.option("--baseline", help="The float model to take turns with, or none.  [default: what OUT's record says]")
@click.option("--backend", help=f"Runs OUT: {BACKENDS}.  [default: auto, or openai with --base-url]")
@click.option("--base-url", "base_urls", multiple=True, help="A server that runs OUT. Repeatable.")
@click.option("--served-model", "served", help="What the server calls OUT.  [default: the first it lists]")
@click.option("--prompt-tokens", multiple=True, default=["512"], show_default=True, help="Of each text: 512,4096.")
@click.option("--new-tokens", multiple=True, default=["128"], show_default=True, help="Of each text.")
@click.option("--batch", multiple=True, default=["1"], show_default=True, help="Texts at the same time: 1,8,32.")
@click.option("--repeats", default=5, show_default=True, help="Times that each is measured.")
@click.option("--warm-up", default=1, show_default=True, help="Times that each is run before that.")
@click.option("--device", default="auto", show_default=True, help="Of models in torch: cpu, cuda, or auto.")
@click.option("--dtype", default="auto", show_default=True, help="Of models in torch: float32, bfloat16, ... or auto.")
@console.recorded
@console.common
def bench(
    out: str | None,
    baseline: str | None,
    prompt_tokens: tuple[str, ...],
    new_tokens: tuple[str, ...],
    batch: tuple[str, ...],
    repeats: int,
    warm_up: int,
    record: Path | None,
    as_json: bool,
    debug: bool,
    **how: Any,
) -> int:
    """Measure how fast OUT and the model it was made from run here: tokens a second, time to first token, memory.

    --prompt-tokens, --new-tokens and --batch may be given several times or as lists; all combinations are measured.
    What a card of 40 GB would do is modelled where there is none here, and labelled so.
    OUT left out is the quantized checkpoint last written into the current folder.
    """
    from r1quant.jobs.bench.run import Protocol
    from r1quant.jobs.bench.run import bench as job
    from r1quant.jobs.runtimes import Setup

    protocol = Protocol(
        numbers("prompt-tokens", prompt_tokens), numbers("new-tokens", new_tokens), numbers("batch", batch),
        repeats, warm_up,
    )  # fmt: skip
    how["backend"] = how["backend"] or ("openai" if how["base_urls"] else "auto")
    with console.watching() as progress:
        done = job(out, baseline, Setup(**how), protocol, progress, debug)
    found = done.as_dict()
    console.write_record(record, found)
    console.emit(found, as_json, lambda: show(found))
    return 0


def numbers(name: str, values: tuple[str, ...]) -> tuple[int, ...]:
    """Whole numbers out of what was given, lists taken apart, each once. Raises RecipeError."""
    from r1quant.errors import RecipeError

    words = [word.strip() for value in values for word in value.split(",")]
    if not all(word.isdecimal() for word in words):
        raise RecipeError(f"--{name} {','.join(values)} are not whole numbers", f"give one or several: --{name} 1,8")
    return tuple(dict.fromkeys(map(int, words)))


def show(found: Mapping[str, Any]) -> None:
    """Both models at every load, then the card of 40 GB."""
    heading = ["load", "model", "prefill tok/s", "decode tok/s", "first token", "p99 gap", "memory"]
    rows = [heading]
    for row in found["rows"]:
        load = load_of(row)
        for side in ("quantized", "baseline"):
            if row[side] is not None:
                rows.append([load, side, *figures(row[side])])
        if row["ratio"] is not None:
            ratio = row["ratio"]
            cells = [of(ratio[key]) for key in ("prefill_tokens_per_second", "decode_tokens_per_second")]
            rows.append([load, "ratio", *cells, of(ratio["ttft_seconds"]), "", ""])
    ran = found["rows"][0]["quantized"]
    where = ", ".join(filter(None, (ran["backend"], ran["device"], ran["dtype"])))
    console.table(rows, f"{found['out']} in {where}: median (smallest .. largest)")
    shown = found["reference"]
    rows = [["load", "model", "prefill tok/s", "decode tok/s", "first token", "memory", "source"]]
    for row in shown["rows"]:
        load = load_of(row)
        for side, title in (("quantized", "quantized"), ("baseline", shown["dtype"])):
            one = row[side]
            rows.append(
                [
                    load,
                    title,
                    plain(one["prefill_tokens_per_second"]),
                    plain(one["decode_tokens_per_second"]),
                    seconds(one["ttft_seconds"]),
                    bytes_text(one["total_bytes"]) + ("" if one.get("fits", True) else ", does not fit"),
                    one["source"],
                ]
            )
    console.table(rows, f"On an {shown['card']}, {shown['source']}")


def load_of(row: Mapping[str, Any]) -> str:
    """Tokens in and out of a text, times texts."""
    return f"({row['prompt_tokens']} + {row['new_tokens']}) x {row['batch']}"


def figures(side: Mapping[str, Any]) -> list[str]:
    """The cells of one model at one load."""
    memory = side["peak_memory_bytes"]
    gap = side["latency_p99_seconds"]
    return [
        of(side["prefill_tokens_per_second"]),
        of(side["decode_tokens_per_second"]),
        seconds(side["ttft_seconds"] and side["ttft_seconds"]["median"]),
        seconds(gap and gap["median"]),
        "unknown" if memory is None else f"{bytes_text(memory)} {side['memory']}",
    ]


def of(spread: Mapping[str, float] | None) -> str:
    """A median with its range."""
    if spread is None:
        return "unknown"
    median, low, high = (f"{spread[key]:.0f}" if spread[key] >= 100 else f"{spread[key]:.3g}" for key in SPREAD)
    return f"{median} ({low} .. {high})"


def plain(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.0f}"


def seconds(value: float | None) -> str:
    return "unknown" if value is None else f"{value * 1e3:.1f} ms"

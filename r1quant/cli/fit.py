"""r1quant fit"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from r1quant.cli import console
from r1quant.cli.options import Given, Grouped, ModelName, build, takes
from r1quant.cli.settings import pick_model
from r1quant.core.formatting import bytes_text, tokens_text
from r1quant.jobs.fit.options import FitOptions
from r1quant.records.speed_rows import load_text

if TYPE_CHECKING:
    from r1quant.jobs.fit.records import MeasuredLoad
    from r1quant.jobs.fit.rows import Row
    from r1quant.jobs.fit.run import Fit

# What the overview shows of the table, from small to large.
MACHINES = (
    "Jetson Orin Nano 8GB", "RTX 4060 Laptop", "RTX 4060", "RTX 3060 12GB", "RTX 4060 Ti 16GB", "RTX 4090", "RTX 5090",
    "M4 16GB", "M4 Max 128GB", "CPU desktop DDR5 64GB", "RTX 6000 Ada", "L4", "A100 40GB", "A100 80GB", "H100 SXM",
    "H200",
)  # fmt: skip
OVERVIEW = ("fp16", "gptq-w8", "gptq-w4", "gguf-q4_k_m")
BOUGHT = ("consumer", "apple", "workstation", "data-centre")


@click.command(cls=Grouped)
@click.argument("model", required=False, type=ModelName())
@takes(FitOptions)
@console.common
def fit(model: str | None, given: Given, as_json: bool, debug: bool) -> None:
    """Say what MODEL needs of hardware in every format, and how fast it would be: memory, context, tokens a second.

    With --gpu or --detect: what can I run on this? Without: which hardware holds it, and which is the smallest?
    Reads headers only; of a model on the Hub or a folder, config.json is enough.
    """
    from r1quant.jobs.fit.options import FitOptions
    from r1quant.jobs.fit.run import fit as job

    options = build(FitOptions, given)
    found = job(pick_model(model), options)
    console.emit(
        found.as_dict(),
        as_json,
        lambda: show(found, options.named or bool(found.records and found.records.measurements)),
    )


def show(found: Fit, chosen: bool) -> None:
    """What to take; then every row of the chosen cards, or an overview and what to buy."""
    model, load = found.model, found.load
    for recommendation in found.recommendations:
        click.echo(recommendation.text)
    cards = "" if load.count == 1 else f", over {load.count} cards"
    click.echo(
        f"{model['name']} ({model['architecture']}): {model['parameters']:,} parameters, "
        f"{model['kv_bytes_per_token']:,} B of {load.kv_bits}-bit cache a token, "
        f"{model['max_positions'] or 'unknown'} positions\n"
        f"{load.batch} x {load.context} tokens{cards}; all speeds are modelled"
    )
    if chosen:
        _show_cards(found)
    else:
        console.table(_overview(found.rows), "Longest context, and tokens a second of decoding")
        console.table(_bought(found.buy), "The smallest that holds it")
    for note in found.notes:
        console.note(f"note: {note}")


def _show_cards(found: Fit) -> None:
    """A table a card, which ends with the baseline; then what was measured, and what was fitted to that."""
    base = [row for row in found.rows if row.baseline]
    heading = ["format", "weights", "cache", "total", "fits", "context", "batch", "prefill/s", "decode/s"]
    for card in dict.fromkeys(row.card for row in found.rows):
        mine = [row for row in found.rows if row.card == card and not row.baseline]
        if mine:
            count = f" x {mine[0].modelled.gpus}" if mine[0].modelled.gpus > 1 else ""
            title = f"{card.name}{count}: {card.memory_bytes / 2**30:.0f} GiB, "
            title += f"{card.bandwidth / 1e9:.0f} GB/s, {card.fp16_flops / 1e12:.3g} TFLOPS"
            console.table([heading, *map(_cells, [*mine, *base])], title)
    measured = [(row, one) for row in found.rows for one in row.measured]
    if measured:
        rows = [["format", "load", "runtime", "prefill/s", "predicted", "decode/s", "predicted", "error"]]
        console.table(rows + [_beside(row, one) for row, one in measured], "Measured, and predicted for the same load")
    for fitted in found.records.fitted if found.records else ():
        kept = fitted.efficiency
        console.note(
            f"fitted to {fitted.points} measurements of {fitted.backend} on {fitted.machine}: "
            f"{kept.bandwidth_share:.2f} of the bandwidth, {kept.compute_share:.2f} of the compute, "
            f"{kept.layer_seconds * 1e6:.0f} us a layer; median error of decoding "
            f"{fitted.usual_error:.0%} before, {fitted.error:.0%} after"
        )


def _beside(row: Row, one: MeasuredLoad) -> list[str]:
    return [
        row.variant.label,
        load_text(one.prompt_tokens, one.new_tokens, one.batch),
        " ".join(filter(None, (one.backend, one.dtype))),
        _speed(one.prefill_tokens_per_second),
        _speed(one.predicted_prefill_tokens_per_second),
        _speed(one.decode_tokens_per_second),
        _speed(one.predicted_decode_tokens_per_second),
        f"{one.decode_error:+.0%}",
    ]


def _cells(row: Row) -> list[str]:
    made, fits = row.modelled, row.modelled.fits
    return [
        f"{row.variant.label}, {row.card.name}" if row.baseline else row.variant.label,
        bytes_text(made.weights_bytes),
        bytes_text(made.kv_bytes),
        bytes_text(made.total_bytes),
        "yes" if fits else "no",
        f"{row.max_context}",
        f"{made.max_batch}",
        _speed(made.prefill_tokens_per_second) if fits else "-",
        _speed(made.decode_tokens_per_second) if fits else "-",
    ]


def _overview(rows: Sequence[Row]) -> list[list[str]]:
    """Cards down, formats across."""
    labels = dict.fromkeys(row.variant.label for row in rows)
    shown = [label for label in labels if label.startswith(OVERVIEW)] or list(labels)[:5]
    cells = {(row.card.name, row.variant.label): row for row in rows}
    table = [["hardware", *shown]]
    for name in MACHINES:
        if any((name, label) in cells for label in shown):
            table.append([name, *(_cell(cells.get((name, label))) for label in shown)])
    return table


def _cell(row: Row | None) -> str:
    if row is None or not row.modelled.fits:
        return f"only {tokens_text(row.max_context)}" if row is not None and row.max_context >= 1024 else "-"
    return f"{tokens_text(row.max_context)}, {_speed(row.modelled.decode_tokens_per_second)}/s"


def _bought(rows: Sequence[Row]) -> list[list[str]]:
    cells = {(row.variant.label, row.card.kind): row for row in rows}
    table = [["format", "total", *BOUGHT]]
    for label in dict.fromkeys(row.variant.label for row in rows):
        first = next(row for row in rows if row.variant.label == label)
        names = []
        for kind in BOUGHT:
            row = cells.get((label, kind))
            count = f" x {row.modelled.gpus}" if row is not None and row.modelled.gpus > 1 else ""
            names.append("-" if row is None else row.card.name + count)
        table.append([label, bytes_text(first.modelled.total_bytes), *names])
    return table


def _speed(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"

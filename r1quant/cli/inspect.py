"""r1quant inspect"""

from __future__ import annotations

import click

from r1quant.cli import console
from r1quant.cli.options import ModelName
from r1quant.cli.settings import pick_model


@click.command()
@click.argument("model", required=False, type=ModelName())
@console.common
def inspect(model: str | None, as_json: bool, debug: bool) -> None:
    """Say what MODEL is: architecture, size, what can be quantized. Reads headers only."""
    from r1quant.jobs.inspect import inspect as job

    found = job(pick_model(model))

    def show() -> None:
        def text(value: object) -> str:
            if isinstance(value, bool):
                return "yes" if value else "no"
            if isinstance(value, dict):
                return ", ".join(f"{k} {v}" for k, v in value.items()) or "none"
            if isinstance(value, list):
                return "\n".join(map(str, value)) or "none"
            return f"{value:,}" if isinstance(value, int) else "none" if value is None else str(value)

        console.table([[key.replace("_", " "), text(value)] for key, value in found.items()], heading=False)

    console.emit(found, as_json, show)

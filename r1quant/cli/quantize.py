"""r1quant quantize"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from r1quant.cli import console
from r1quant.cli.plan import plan as plan_command
from r1quant.cli.plan import show_headline
from r1quant.cli.recipe import build_recipe, recipe_options
from r1quant.core.formatting import bytes_text, seconds_text


@click.command()
@recipe_options
@click.option("--dry-run", is_flag=True, help="Stop after the plan, as `r1quant plan` does.")
@console.recorded
@console.common
@click.pass_context
def quantize(
    context: click.Context,
    /,
    model: str | None,
    out: Path | None,
    preset: str | None,
    bits: str | None,
    dry_run: bool,
    record: Path | None,
    as_json: bool,
    debug: bool,
    **rest: Any,
) -> int:
    """Quantize MODEL into a folder that vLLM, SGLang and transformers load.

    Interrupted, the same command goes on after the last finished layer and ends in the same bytes.
    """
    if dry_run:
        words = {"model": model, "out": out, "preset": preset, "bits": bits, "as_json": as_json, "debug": debug}
        code: int = context.invoke(plan_command, **words, **rest)
        return code
    from r1quant.jobs.quantize.run import make_plan, run

    plan = make_plan(console.pick_model(model), build_recipe(preset, bits, rest), console.pick_out(out))
    show_headline(plan)
    with console.watching() as progress:
        done = run(plan, progress)
    found = done.as_dict()
    console.write_record(record, found)

    def show() -> None:
        result = done.record
        worst = max(result["linears"], key=lambda linear: linear["relative_loss"])
        again = " (it was complete already)" if done.already_complete else ""
        console.table(
            [
                ["written", f"{done.out}{again}"],
                ["bits per quantized weight", f"{result['bits_per_weight']:.3f}"],
                ["worst relative loss", f"{worst['relative_loss']:.2e} in {worst['name']}"],
                ["not as usual", "\n".join(result["fallbacks"]) or "nothing"],
                ["time", seconds_text(done.seconds)],
                ["peak memory", bytes_text(done.peak_rss_bytes)],
                ["next", f"r1quant verify {done.out.name}"],
            ],
            heading=False,
        )

    console.emit(found, as_json, show)
    return 0

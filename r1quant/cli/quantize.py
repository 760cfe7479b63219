"""r1quant quantize"""

from __future__ import annotations

from pathlib import Path

import click

from r1quant.cli import console
from r1quant.cli.options import Given, Grouped
from r1quant.cli.plan import answer, show_headline, takes_recipe
from r1quant.cli.settings import pick_model, pick_out, pick_recipe
from r1quant.core.formatting import bytes_text, seconds_text


@click.command(cls=Grouped)
@takes_recipe
@click.option("--dry-run", is_flag=True, help="Stop after the plan, as `r1quant plan` does.")
@console.recorded
@console.common
def quantize(
    model: str | None,
    out: Path | None,
    preset: str | None,
    given: Given,
    dry_run: bool,
    record: Path | None,
    as_json: bool,
    debug: bool,
) -> int:
    """Quantize MODEL into a folder that vLLM, SGLang and transformers load.

    Interrupted, the same command goes on after the last finished layer and ends in the same bytes.
    """
    from r1quant.jobs.quantize.run import make_plan, run

    plan = make_plan(pick_model(model), pick_recipe(preset, given), pick_out(out))
    if dry_run:
        return answer(plan, as_json)
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

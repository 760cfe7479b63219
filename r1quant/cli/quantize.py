"""r1quant quantize"""

from __future__ import annotations

from pathlib import Path

import click

from r1quant.cli import console
from r1quant.cli.next_steps import show as show_next
from r1quant.cli.options import Given, Grouped
from r1quant.cli.plan import answer, show_headline, takes_recipe
from r1quant.cli.settings import pick_model, pick_out, pick_recipe
from r1quant.core.formatting import bytes_text, seconds_text


@click.command(cls=Grouped)
@takes_recipe
@click.option("--dry-run", is_flag=True, help="Stop after the plan, as `r1quant plan` does.")
@click.option(
    "--resume-anyway",
    is_flag=True,
    help="Go on with an unfinished run though versions or the number of threads have changed; its record will say so.",
)
@console.recorded
@console.common
def quantize(
    model: str | None,
    out: Path | None,
    preset: str | None,
    given: Given,
    dry_run: bool,
    resume_anyway: bool,
    record: Path | None,
    as_json: bool,
    debug: bool,
) -> int:
    """Quantize MODEL into a folder that vLLM, SGLang and transformers load, or a GGUF file for llama.cpp and Ollama.

    Interrupted, the same command goes on after the last finished layer and ends in the same bytes.
    """
    from r1quant.jobs.quantize.run import make_plan, run
    from r1quant.jobs.serving import as_dict, next_steps

    plan = make_plan(pick_model(model), pick_recipe(preset, given), pick_out(out))
    if dry_run:
        return answer(plan, as_json)
    show_headline(plan)
    with console.watching() as progress:
        done = run(plan, progress, resume_anyway)
    content, steps = done.as_dict(), next_steps(done.out)
    console.write_record(record, content)

    def show() -> None:
        result = done.record
        worst = max(result.linears, key=lambda linear: linear.relative_loss)
        again = " (it was complete already)" if done.already_complete else ""
        console.table(
            [
                ["written", f"{done.out}{again}"],
                ["bits per quantized weight", f"{result.bits_per_weight:.3f}"],
                ["worst relative loss", f"{worst.relative_loss:.2e} in {worst.name}"],
                ["not as usual", "\n".join(result.fallbacks) or "nothing"],
                ["time", seconds_text(done.seconds)],
                ["peak memory", bytes_text(done.peak_rss_bytes)],
            ],
            heading=False,
        )
        show_next(steps)

    console.emit({**content, "next": [as_dict(step) for step in steps]}, as_json, show)
    return 0

"""r1quant plan"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from r1quant.cli import console
from r1quant.cli.options import build_recipe, recipe_options

if TYPE_CHECKING:
    from r1quant.planner import Plan


@click.command()
@recipe_options
@click.option("--tp", type=click.IntRange(1), default=1, show_default=True, help="Devices that will serve the result.")
@console.common
def plan(
    model: str | None,
    out: Path | None,
    preset: str | None,
    bits: str | None,
    as_json: bool,
    debug: bool,
    tp: int = 1,
    **rest: Any,
) -> int:
    """Show what quantize would do to MODEL, what would stop it, and which runtimes will load the result.

    Reads headers only.
    """
    from r1quant.jobs.quantize import make_plan

    made = make_plan(console.pick_model(model), build_recipe(preset, bits, rest), console.pick_out(out), tp)
    console.emit(made.as_dict(), as_json, lambda: show(made, tensors=True))
    return made.problems[0].kind.exit_code if made.problems else 0


def show(made: Plan, tensors: bool) -> None:
    """The plan for people: each kind of linear in one row, then totals, warnings and problems."""
    recipe, estimate = made.recipe, made.estimate
    title = f"{made.checkpoint.name} ({made.arch.model_type}, {made.checkpoint.dtype}) -> {recipe.format}"
    if tensors:
        kinds: dict[tuple[str, tuple[int, int]], int] = {}
        for linear in made.linears:
            kind = (linear.name.split(f"{linear.layer}.", 1)[-1], linear.shape)
            kinds[kind] = kinds.get(kind, 0) + 1
        group = "row" if recipe.group_size == -1 else str(recipe.group_size)
        rows = [["linear", "out x in", "count", "bits", "group"]]
        rows += [[n, f"{s[0]} x {s[1]}", str(c), str(recipe.bits), group] for (n, s), c in kinds.items()]
        console.table(rows, title)
        console.table(
            [
                ["output", console.gigabytes(estimate.output_bytes)],
                ["bits per quantized weight", f"{made.bits_per_weight:.3f}"],
                ["run directory, deleted at the end", console.gigabytes(estimate.run_bytes)],
                ["predicted peak memory", console.gigabytes(estimate.peak_rss_bytes)],
                ["predicted time, roughly", f"{estimate.seconds:.0f} s"],
            ],
            heading=False,
        )
        runtimes = [["runtime", "loads", "does not load"]]
        for verdict in made.runtimes:
            reasons = dict.fromkeys(verdict.refuses.values())
            lines = [f"{', '.join(n for n, r in verdict.refuses.items() if r == why)}: {why}" for why in reasons]
            runtimes.append([verdict.runtime, ", ".join(verdict.loads), "\n".join(lines)])
        console.table(
            runtimes,
            f"this grid, exported, on {made.devices} device{'s' if made.devices > 1 else ''}",
        )
    else:
        console.note(
            f"{title}: {recipe.method}, {recipe.bits} bits, group size {recipe.group_size}, "
            f"{'symmetric' if recipe.symmetric else 'asymmetric'}; {len(made.linears)} linears, "
            f"{made.bits_per_weight:.3f} bits a weight, {console.gigabytes(estimate.output_bytes)} to write, "
            f"peak memory about {console.gigabytes(estimate.peak_rss_bytes)}"
        )
    for warning in made.warnings:
        console.note(f"note: {warning}")
    for problem in made.problems if tensors else ():  # else they are raised next
        console.note(f"problem: {problem.message}\n  {problem.hint}")

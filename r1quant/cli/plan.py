"""r1quant plan"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from r1quant.cli import console
from r1quant.cli.recipe import build_recipe, recipe_options
from r1quant.core.formatting import bytes_text, seconds_text

if TYPE_CHECKING:
    from r1quant.planning.estimates import Estimate
    from r1quant.planning.planner import Plan


@click.command()
@recipe_options
@click.option("--tp", type=click.IntRange(1), default=1, show_default=True, help="Devices that will serve the result.")
@click.option("--predict", is_flag=True, help="Choose the bits of a budget now, after a sensitivity pass.")
@console.common
def plan(
    model: str | None,
    out: Path | None,
    preset: str | None,
    bits: str | None,
    as_json: bool,
    debug: bool,
    tp: int = 1,
    predict: bool = False,
    **rest: Any,
) -> int:
    """Show what quantize would do to MODEL, what would stop it, and which runtimes will load the result.

    Reads headers only, unless --predict asks for what rounding would lose; quantize uses that again.
    """
    from r1quant.jobs.quantize import run as job

    made = job.make_plan(console.pick_model(model), build_recipe(preset, bits, rest), console.pick_out(out), tp)
    if predict:
        with console.watching() as progress:
            made = job.decided(made, progress)
    console.emit(made.as_dict(), as_json, lambda: show(made, tensors=True))
    return made.problems[0].kind.exit_code if made.problems else 0


def show(made: Plan, tensors: bool) -> None:
    """The plan for people: each kind of linear in one row, then totals, warnings and problems."""
    recipe, estimate = made.recipe, made.estimate
    title = f"{made.checkpoint.name} ({made.arch.model_type}, {made.checkpoint.dtype}) -> {recipe.format}"
    if tensors:
        console.table(_kinds(made), title)
        console.table(
            [
                ["output", bytes_text(estimate.output_bytes)],
                ["bits per quantized weight", f"{made.bits_per_weight:.3f}"],
                *_chosen(made),
                ["run directory, deleted at the end", bytes_text(estimate.run_bytes)],
                *_cached(estimate),
                ["predicted peak memory", bytes_text(estimate.peak_rss_bytes)],
                ["predicted time, roughly", seconds_text(estimate.seconds, digits=2)],
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
            f"{title}: {recipe.method}, {_bits(made)} bits, group size {recipe.group_size}, "
            f"{'symmetric' if recipe.symmetric else 'asymmetric'}; {len(made.linears)} linears, "
            f"{made.bits_per_weight:.3f} bits a weight, {bytes_text(estimate.output_bytes)} to write, "
            f"peak memory about {bytes_text(estimate.peak_rss_bytes)}"
        )
    for warning in made.warnings:
        console.note(f"note: {warning}")
    for problem in made.problems if tensors else ():  # else they are raised next
        console.note(f"problem: {problem.message}\n  {problem.hint}")


def _bits(made: Plan) -> str:
    """All the bits that linears have or, before that is decided, may have."""
    if made.budget is not None and not made.decided:
        return ", ".join(map(str, made.budget.choices))
    found = {"float" if grid is None else str(grid.bits) for grid in made.grids.values()}
    return ", ".join(sorted(found))


def _kinds(made: Plan) -> list[list[str]]:
    """Each kind of linear in one row, with how many of them have which bits."""
    kinds: dict[tuple[str, tuple[int, int]], list[str]] = {}
    for linear in made.linears:
        grid = made.grids[linear.name]
        kind = (linear.name.split(f"{linear.layer}.", 1)[-1], linear.shape)
        kinds.setdefault(kind, []).append("float" if grid is None else str(grid.bits))
    group = "row" if made.recipe.group_size == -1 else str(made.recipe.group_size)
    rows = [["linear", "out x in", "count", "bits", "group"]]
    for (name, shape), bits in kinds.items():
        counts = {width: bits.count(width) for width in sorted(bits)}
        each = next(iter(counts)) if len(counts) == 1 else ", ".join(f"{w} ({n}x)" for w, n in counts.items())
        if not made.decided:
            each = _bits(made)
        rows.append([name, f"{shape[0]} x {shape[1]}", str(len(bits)), each, group])
    return rows


def _cached(estimate: Estimate) -> list[list[str]]:
    if not estimate.cache_bytes:
        return []
    kept = f"{bytes_text(estimate.cache_bytes)}, of which {bytes_text(estimate.kept_bytes)} are kept"
    return [["cache, where it lacks this", kept]]


def _chosen(made: Plan) -> list[list[str]]:
    """What a budget is and, where its bits are decided, what they are predicted to cost."""
    if made.budget is None:
        return []
    what = "linears" if made.budget.of == "linears" else "weight files"
    rows = [[f"budget of the {what}", bytes_text(made.budget.nbytes)]]
    if made.allocation is not None and made.decided:
        found = made.allocation
        rows.append(["predicted KL divergence", f"{found.loss:.3g}, no choice is better by more than {found.gap:.1g}"])
    return rows

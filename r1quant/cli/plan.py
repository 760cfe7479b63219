"""r1quant plan"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from r1quant.cli import console
from r1quant.cli.options import Given, Grouped, GroupedOption, ModelName, Word, takes
from r1quant.cli.settings import pick_model, pick_out, pick_recipe
from r1quant.core.blocktypes import BlockGrid
from r1quant.core.formatting import bytes_text, seconds_text
from r1quant.core.grid import ValueGrid
from r1quant.recipe import OUTPUT, ROUNDING, Recipe, preset_of
from r1quant.registry import DEFAULT_PRESET, PRESETS

if TYPE_CHECKING:
    from r1quant.planning.estimates import Estimate
    from r1quant.planning.plan import Plan


def takes_recipe(function: Callable[..., int]) -> Callable[..., int]:
    """The options that say what is quantized, and how: those of plan and of quantize."""
    function = takes(Recipe)(function)
    function = click.option(
        "--preset",
        cls=GroupedOption,
        group=ROUNDING,
        type=Word(tuple(PRESETS)),
        help="How much effort the rounding takes; it stands for several of the options below.",
        show_default=f"{DEFAULT_PRESET}, if no method is named",
    )(function)
    function = click.option(
        "-o",
        "--out",
        cls=GroupedOption,
        group=OUTPUT,
        type=click.Path(path_type=Path),
        help="Folder that is written.",
        show_default="named after the model",
    )(function)
    return click.argument("model", required=False, type=ModelName())(function)


@click.command(cls=Grouped)
@takes_recipe
@click.option("--tp", type=click.IntRange(1), default=1, show_default=True, help="Devices that will serve the result.")
@click.option("--predict", is_flag=True, help="Make the sensitivity pass now, and choose the bits of a budget.")
@console.common
def plan(
    model: str | None,
    out: Path | None,
    preset: str | None,
    given: Given,
    tp: int,
    predict: bool,
    as_json: bool,
    debug: bool,
) -> int:
    """Show what quantize would do to MODEL, what would stop it, and which runtimes will load the result.

    Reads headers only, unless --predict asks for what rounding would lose; quantize uses that again.
    """
    from r1quant.jobs.quantize.prepare import decided
    from r1quant.jobs.quantize.run import make_plan

    plan = make_plan(pick_model(model), pick_recipe(preset, given), pick_out(out), tp)
    if predict:
        with console.watching() as progress:
            plan = decided(plan, progress)
    return answer(plan, as_json)


def answer(plan: Plan, as_json: bool) -> int:
    """A plan as the result of a command, which fails if the plan has problems."""
    console.emit(plan.as_dict(), as_json, lambda: show(plan))
    return plan.problems[0].kind.exit_code if plan.problems else 0


def show(plan: Plan) -> None:
    """The plan for people: each kind of linear in one row, then totals, runtimes, warnings and problems."""
    estimate = plan.estimate
    console.table(_kinds(plan), _title(plan))
    console.table(
        [
            ["output", bytes_text(estimate.output_bytes)],
            ["bits per quantized weight", f"{plan.bits_per_weight:.3f}"],
            *_budget(plan),
            ["run directory, deleted at the end", bytes_text(estimate.run_bytes)],
            *_cache(estimate),
            ["predicted peak memory", bytes_text(estimate.peak_rss_bytes)],
            ["predicted time, roughly", seconds_text(estimate.seconds, 2)],
        ],
        heading=False,
    )
    for line in _repeated(plan):
        console.note(line)
    runtimes = [["runtime", "loads", "does not load"]]
    for verdict in plan.runtimes:
        reasons = dict.fromkeys(verdict.refuses.values())
        lines = [f"{', '.join(n for n, r in verdict.refuses.items() if r == why)}: {why}" for why in reasons]
        runtimes.append([verdict.runtime, ", ".join(verdict.loads), "\n".join(lines)])
    console.table(runtimes, f"this grid, exported, on {plan.devices} device{'s' if plan.devices > 1 else ''}")
    _warn(plan)
    for problem in plan.problems:
        console.note(f"problem: {problem.message}\n  {problem.hint}")


def show_headline(plan: Plan) -> None:
    """The plan in one line, and what the user should know before it runs. Its problems are raised by the run."""
    recipe = plan.recipe
    preset = preset_of(recipe)
    console.note(
        f"{_title(plan)}: {f'{preset}: ' if preset else ''}{recipe.method}, {_grid(plan)}; "
        f"{len(plan.matrices)} linears, {plan.bits_per_weight:.3f} bits a weight, "
        f"{bytes_text(plan.estimate.output_bytes)} to write, "
        f"peak memory about {bytes_text(plan.estimate.peak_rss_bytes)}"
    )
    _warn(plan)


def _title(plan: Plan) -> str:
    checkpoint = plan.checkpoint
    return f"{checkpoint.name} ({plan.arch.model_type}, {checkpoint.dtype}) -> {plan.recipe.format}"


def _warn(plan: Plan) -> None:
    if plan.complete:
        console.note(f"note: {plan.out} is complete already: it is compared with this plan, and nothing is written")
    for warning in plan.warnings:
        console.note(f"note: {warning}")


def _grid(plan: Plan) -> str:
    """The grids in a few words."""
    recipe = plan.recipe
    if recipe.typed:
        return recipe.mixture or _bits(plan)
    return f"{_bits(plan)} bits, group size {recipe.group_size}, {'symmetric' if recipe.symmetric else 'asymmetric'}"


def _bits(plan: Plan) -> str:
    """All the bits or types that linears have or, before that is decided, may have."""
    if plan.budget is not None and not plan.decided:
        return ", ".join(map(str, plan.budget.choices))
    return ", ".join(sorted({_width(grid) for grid in plan.grids.values()}))


def _width(grid: ValueGrid | None) -> str:
    return "float" if grid is None else grid.type if isinstance(grid, BlockGrid) else str(grid.bits)


def _kinds(plan: Plan) -> list[list[str]]:
    """Each kind of linear in one row, with how many of them have which bits or types."""
    kinds: dict[tuple[str, tuple[int, int]], list[str]] = {}
    for linear in plan.matrices:
        kind = (linear.name.split(f"{linear.layer}.", 1)[-1], linear.shape)
        kinds.setdefault(kind, []).append(_width(plan.grids[linear.name]))
    typed = plan.recipe.typed
    group = [] if typed else ["row" if plan.recipe.group_size == -1 else str(plan.recipe.group_size)]
    rows = [["linear", "out x in", "count", *(["type"] if typed else ["bits", "group"])]]
    for (name, shape), bits in kinds.items():
        counted = _counted(bits) if plan.decided else _bits(plan)
        rows.append([name, f"{shape[0]} x {shape[1]}", str(len(bits)), counted, *group])
    return rows


def _counted(bits: list[str]) -> str:
    """4, or 4 (3x), 8 (1x)."""
    counts = sorted(Counter(bits).items())
    return counts[0][0] if len(counts) == 1 else ", ".join(f"{width} ({count}x)" for width, count in counts)


def _cache(estimate: Estimate) -> list[list[str]]:
    if not estimate.cache_bytes:
        return []
    size = f"{bytes_text(estimate.cache_bytes)}, of which {bytes_text(estimate.kept_bytes)} stay"
    return [["cache, if it lacks this", size]]


def _repeated(plan: Plan) -> list[str]:
    """How others make the same choice of types."""
    return ["llama-quantize takes the same types with:", *(f"  {a}" for a in plan.arguments)] if plan.arguments else []


def _budget(plan: Plan) -> list[list[str]]:
    """What a budget is and, once its bits are decided, what they are predicted to cost."""
    if plan.budget is None:
        return []
    what = "weight files" if plan.budget.of == "files" else "matrices" if plan.recipe.typed else "linears"
    rows = [[f"budget of the {what}", bytes_text(plan.budget.nbytes)]]
    if plan.allocation is not None and plan.decided:
        allocation = plan.allocation
        loss = f"{allocation.loss:.3g}, no choice is better by more than {allocation.gap:.1g}"
        rows.append(["predicted KL divergence", loss])
    return rows

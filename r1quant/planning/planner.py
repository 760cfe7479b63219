"""Makes plans out of headers: what a quantization will do, and everything that is wrong with it.

No torch, and no weight is read. Problems are collected, not raised one at a time, so that a user mends them together.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from r1quant.arch.tables import Architecture, architecture_of, layer_count
from r1quant.checkpoint.safetensors import Checkpoint
from r1quant.checkpoint.tensorfile import TensorSpec
from r1quant.core.grid import Grids
from r1quant.errors import R1QuantError
from r1quant.formats.table import ENCODERS
from r1quant.planning import layout as layouts
from r1quant.planning import problems as checks
from r1quant.planning.budget import LossPredictions, budget_of, decide
from r1quant.planning.choices import matrices_of
from r1quant.planning.estimates import estimated
from r1quant.planning.layout import Layout, OneFile
from r1quant.planning.linears import LinearPlan, PlanProblem, forms_of, linears_of, table_grids, tables_of
from r1quant.planning.place import cache_warnings, default_out, is_complete, place_problems
from r1quant.planning.plan import Plan
from r1quant.planning.types import file_bytes, typed
from r1quant.recipe import DEFAULT_TYPE, Recipe


def make(
    checkpoint: Checkpoint, recipe: Recipe, out: Path | None = None, devices: int = 1, grids: Grids | None = None
) -> Plan:
    """The plan for quantizing a checkpoint.

    out      the folder that the result becomes; if it is left out, one in the current folder, named after the result,
             and its disk is not looked at
    devices  over how many the result is split when it is served (tensor parallelism)
    grids    what every linear becomes; if they are left out, the recipe's grid

    Raises CheckpointError if there is nothing to plan for: an unknown architecture or an unusable config.
    """
    arch, layers = architecture_of(checkpoint.config), layer_count(checkpoint.config, len(checkpoint.tensors))
    problems = checks.already_quantized(checkpoint) or checks.tensor_problems(checkpoint, arch)
    linears, tables = linears_of(checkpoint, arch, layers), tables_of(checkpoint, arch, layers)
    if recipe.typed:
        usual: Grids = typed(checkpoint.config, arch, (*linears, *tables), recipe.mixture or DEFAULT_TYPE)
        uneven = checks.block_problems(linears, usual)
    else:
        usual = dict.fromkeys((linear.name for linear in linears), recipe.value_grid)
        uneven = checks.group_problems(linears, recipe) + checks.table_problems(checkpoint, recipe)
    problems += uneven
    stated = table_grids(tables, recipe)
    budget, allocation = None, None
    if recipe.budgeted and grids is None and not problems:
        sized = partial(_layout, checkpoint, arch, (*linears, *tables), recipe)
        matrices = matrices_of(recipe, linears, tables)
        budget, unmet = budget_of(checkpoint, arch, recipe, matrices, sized)
        problems += unmet
        if budget is not None:
            even = decide(matrices, recipe, budget, sized, LossPredictions.even(matrices))
            allocation = replace(even, source=None)
            grids = allocation.grids
    if not uneven and (grids or not recipe.budgeted):
        rounded = (*linears, *(table for table in tables if table.name in stated))
        problems += checks.form_problems(rounded, {**(grids or usual), **stated}, recipe)
    grids = {**(grids or usual), **stated}
    problems += checks.rotation_problems(arch, recipe) + checks.text_problems(checkpoint, recipe)
    try:
        layout = _layout(checkpoint, arch, (*linears, *tables), recipe, grids)
    except R1QuantError as error:
        layout = OneFile(0)
        problems = problems or [PlanProblem(error.message, error.hint, type(error))]
    estimate = estimated(checkpoint, recipe, linears, tables, grids, layout)
    place = (out or default_out(checkpoint, recipe, Path.cwd())).absolute()
    if out is not None and not problems:
        problems += place_problems(place, estimate)
    if devices > 1 and not problems:
        problems += checks.device_problems(checkpoint, arch, linears, grids, recipe, devices)
    warnings = checks.warnings_of(checkpoint, arch, (*linears, *tables), grids, recipe) + cache_warnings(estimate)
    if budget is not None:
        what = "types" if recipe.typed else "bits"
        warnings.insert(0, f"{what} are decided after the sensitivity pass; until then every weight counts alike")
    return Plan(
        checkpoint, arch, recipe, place, layers, linears, tables, grids, layout, tuple(problems), tuple(warnings),
        estimate, devices, budget, allocation, is_complete(place),
    )  # fmt: skip


def allocated(plan: Plan, predictions: LossPredictions) -> Plan:
    """A plan with a budget, its bits decided by what each linear is predicted to lose, and its bytes exact.

    Raises NumericError if a prediction is missing, RecipeError if the decided plan cannot be carried out.
    """
    plan.require()
    if plan.budget is None:
        return plan
    checkpoint, recipe = plan.checkpoint, plan.recipe
    sized = partial(_layout, checkpoint, plan.arch, (*plan.linears, *plan.tables), recipe)
    matrices = matrices_of(recipe, plan.linears, plan.tables)
    allocation = decide(matrices, recipe, plan.budget, sized, predictions)
    decided = make(checkpoint, recipe, None, plan.devices, allocation.grids)
    decided.require()
    return replace(decided, out=plan.out, complete=plan.complete, budget=plan.budget, allocation=allocation)


def _layout(
    checkpoint: Checkpoint, arch: Architecture, linears: tuple[LinearPlan, ...], recipe: Recipe, grids: Grids
) -> Layout | OneFile:
    if recipe.typed:
        return OneFile(file_bytes(checkpoint, arch, forms_of(linears, grids), recipe.mixture))
    grids = {**grids, **table_grids(linears, recipe)}  # a budget chooses the bits of the linears alone
    groups_fit = all(recipe.group_size == -1 or linear.shape[1] % recipe.group_size == 0 for linear in linears)
    linear_specs = forms_of(linears, grids) if groups_fit else {}
    tensors = (TensorSpec(info.name, info.dtype, info.shape) for info in checkpoint.tensors.values())
    return layouts.make(tensors, arch, linear_specs, ENCODERS[recipe.format])

"""Plan: what a quantization will do, found out from headers alone; and everything that is wrong with it.

No torch, and no weight is read. Problems are collected, not raised one at a time, so that a user mends them together.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from r1quant.arch.tables import Architecture, architecture_of, layer_count
from r1quant.arch.yarn import yarn
from r1quant.checkpoint.artifact import LinearSpec, has_chat_template
from r1quant.checkpoint.safetensors import Checkpoint
from r1quant.checkpoint.tensorfile import TensorSpec
from r1quant.core.floats import FLOAT_DTYPES
from r1quant.core.formatting import bytes_text
from r1quant.core.grid import GROUP_SIZES, Grids
from r1quant.data import selfcalib
from r1quant.data.texts import SELF
from r1quant.errors import CheckpointError, OutOfSpaceError
from r1quant.formats.codec import Codec
from r1quant.formats.table import CODECS
from r1quant.planning import layout as layouts
from r1quant.planning import preflight
from r1quant.planning.budget import Allocation, Budget, Predictions, budget_of, decide
from r1quant.planning.estimates import Estimate, estimated
from r1quant.planning.layout import Layout
from r1quant.planning.linears import LinearPlan, PlanProblem, forms_of, linears_of
from r1quant.recipe import Recipe
from r1quant.storage.cache import cache_folder


@dataclass(frozen=True)
class Plan:
    """linears: all that may be quantized; grids: what each becomes, None where it stays in float."""

    checkpoint: Checkpoint
    arch: Architecture
    recipe: Recipe
    layers: int
    linears: tuple[LinearPlan, ...]
    grids: Grids
    layout: Layout
    problems: tuple[PlanProblem, ...]
    warnings: tuple[str, ...]
    estimate: Estimate
    devices: int = 1
    budget: Budget | None = None
    allocation: Allocation | None = None

    @property
    def decided(self) -> bool:
        """Whether the grids are final; not where a budget asks for predictions that are not there yet."""
        return self.budget is None or (self.allocation is not None and self.allocation.source is not None)

    @property
    def quantized_parameters(self) -> int:
        return sum(linear.weights for linear in self.linears if self.grids[linear.name] is not None)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits of all linears, with scales, zero points and group maps, per weight."""
        return 8 * sum(map(self.stored, self.linears)) / max(1, sum(linear.weights for linear in self.linears))

    @property
    def codec(self) -> Codec:
        return CODECS[self.recipe.format]

    @property
    def linear_specs(self) -> dict[str, LinearSpec]:
        """What each quantized linear will be, by name."""
        return forms_of(self.linears, self.grids)

    @property
    def plain(self) -> tuple[str, ...]:
        """The linears that stay in float, the head among them."""
        kept = [linear.name for linear in self.linears if self.grids[linear.name] is None]
        return *kept, self.arch.tensors.head.removesuffix(".weight")

    def stored(self, linear: LinearPlan) -> int:
        """The bytes that a linear will take."""
        return linear.stored(self.grids[linear.name], self.codec)

    @property
    def runtimes(self) -> list[preflight.Verdict]:
        """Which runtimes will load what this quantization can be exported to."""
        return preflight.runtimes(self.arch, self.checkpoint.config, self.linear_specs, self.devices)

    def require(self) -> None:
        """Raises the problems as one error."""
        if not self.problems:
            return
        first = self.problems[0]
        more = f" (and {len(self.problems) - 1} more; see r1quant plan)" if len(self.problems) > 1 else ""
        raise first.kind(first.message + more, first.hint)

    def _entry(self, linear: LinearPlan) -> dict[str, Any]:
        grid, stored = self.grids[linear.name], self.stored(linear)
        return {
            "name": linear.name,
            "shape": list(linear.shape),
            "bits": (8 * stored // linear.weights if grid is None else grid.bits) if self.decided else None,
            "group_size": None if grid is None else grid.group_size,
            "bytes": stored if self.decided else None,
        }

    def as_dict(self) -> dict[str, Any]:
        return {
            "model": self.checkpoint.name,
            "architecture": self.arch.model_type,
            "recipe": self.recipe.as_dict(),
            "budget": None if self.budget is None else self.budget.as_dict(),
            "allocation": self.allocation.as_dict() if self.allocation is not None and self.decided else None,
            "linears": [self._entry(linear) for linear in self.linears],
            "bits_per_weight": self.bits_per_weight,
            "quantizable_parameters": sum(linear.weights for linear in self.linears),
            "output_bytes": self.estimate.output_bytes,
            "run_directory_bytes": self.estimate.run_bytes,
            "cache_bytes": self.estimate.cache_bytes,
            "cache_bytes_kept": self.estimate.kept_bytes,
            "predicted_peak_rss_bytes": self.estimate.peak_rss_bytes,
            "predicted_seconds": self.estimate.seconds,
            "formats": preflight.formats(self.linear_specs),
            "runtimes": [verdict.as_dict() for verdict in self.runtimes],
            "devices": self.devices,
            "problems": [{"message": p.message, "hint": p.hint} for p in self.problems],
            "warnings": list(self.warnings),
        }


def check_tensors(checkpoint: Checkpoint, arch: Architecture) -> list[PlanProblem]:
    """Whether the checkpoint holds exactly the tensors that its config implies, in float."""
    shapes, again = arch.shapes(checkpoint.config), "download the model again"
    tied = bool(checkpoint.config.get("tie_word_embeddings"))
    problems = []
    for name, info in checkpoint.tensors.items():
        if name.endswith(arch.tensors.ignored):
            continue
        if name not in shapes:
            problems.append(f"tensor {name} is not part of the {arch.model_type} architecture")
        elif info.shape != shapes[name]:
            problems.append(f"tensor {name} has shape {list(info.shape)}, config.json implies {list(shapes[name])}")
        elif info.dtype not in FLOAT_DTYPES:
            problems.append(f"tensor {name} is {info.dtype}; only BF16, F16 and F32 are read")
    for name in shapes:
        optional = name.endswith(".bias") or (name == arch.tensors.head and tied)
        if name not in checkpoint.tensors and not optional:
            problems.append(f"tensor {name} is missing")
    return [PlanProblem(message, again, CheckpointError) for message in problems]


def make(
    checkpoint: Checkpoint, recipe: Recipe, out: Path | None = None, devices: int = 1, grids: Grids | None = None
) -> Plan:
    """The plan for quantizing a checkpoint; out is where its disk space is looked up.

    devices  over how many the result is to be split where it is served (tensor parallelism)
    grids    what every linear becomes; the recipe's grid where they are left out

    Raises CheckpointError where there is nothing to plan for: an unknown architecture or an unusable config.
    """
    arch, layers = architecture_of(checkpoint.config), layer_count(checkpoint.config, len(checkpoint.tensors))
    problems = _already_quantized(checkpoint) or check_tensors(checkpoint, arch)
    linears = linears_of(checkpoint, arch, layers)
    uniform = dict.fromkeys((linear.name for linear in linears), recipe.grid)
    uneven = _group_problems(linears, recipe)
    problems += uneven
    budget, allocation = None, None
    if recipe.budgeted and grids is None and not problems:
        sized = partial(_layout, checkpoint, arch, linears, recipe)
        budget, found = budget_of(checkpoint, arch, recipe, linears, sized)
        problems += found
        if budget is not None:
            even = decide(linears, recipe, budget, sized, Predictions.even(linears))
            allocation = replace(even, source=None)
            grids = allocation.grids
    if not uneven and (grids or not recipe.budgeted):
        problems += _form_problems(linears, grids or uniform, recipe)
    grids = grids or uniform
    problems += _text_problems(checkpoint, recipe)
    layout = _layout(checkpoint, arch, linears, recipe, grids)
    estimate = estimated(checkpoint, recipe, linears, grids, layout)
    if out is not None and not problems:
        problems += _place_problems(out, estimate)
    if devices > 1 and not problems:
        problems += _device_problems(checkpoint, arch, linears, grids, recipe, devices)
    warnings = _warnings(checkpoint, arch, linears, grids, recipe) + _cache_warnings(estimate)
    if budget is not None:
        warnings.insert(0, "bits are decided after the sensitivity pass; until then every weight counts alike")
    return Plan(
        checkpoint, arch, recipe, layers, linears, grids, layout, tuple(problems), tuple(warnings), estimate, devices,
        budget, allocation,
    )  # fmt: skip


def allocated(made: Plan, predictions: Predictions) -> Plan:
    """A plan with a budget, its bits decided by what each linear is predicted to lose, and its bytes exact.

    Raises NumericError where a prediction is missing, RecipeError where the decided plan cannot be carried out.
    """
    made.require()
    if made.budget is None:
        return made
    checkpoint, arch, recipe, linears = made.checkpoint, made.arch, made.recipe, made.linears
    sized = partial(_layout, checkpoint, arch, linears, recipe)
    allocation = decide(linears, recipe, made.budget, sized, predictions)
    decided = make(checkpoint, recipe, None, made.devices, allocation.grids)
    decided.require()
    return replace(decided, budget=made.budget, allocation=allocation)


def _already_quantized(checkpoint: Checkpoint) -> list[PlanProblem]:
    if checkpoint.config.get("quantization_config") is None:
        return []
    return [
        PlanProblem(
            f"{checkpoint.source} is quantized already",
            "quantize the BF16, FP16 or FP32 model it was made from",
            CheckpointError,
        )
    ]


def _group_problems(linears: tuple[LinearPlan, ...], recipe: Recipe) -> list[PlanProblem]:
    problems = []
    group = recipe.group_size
    for columns in sorted({linear.shape[1] for linear in linears}):
        if group != -1 and columns % group:
            name = next(linear.name for linear in linears if linear.shape[1] == columns)
            widths = {linear.shape[1] for linear in linears}
            fitting = [g for g in GROUP_SIZES if g != -1 and all(w % g == 0 for w in widths)]
            choices = ", ".join(map(str, [*reversed(fitting), -1]))
            problems.append(
                PlanProblem(
                    f"group size {group} does not divide the {columns} input columns of {name}",
                    f"use --group-size with one that does: {choices} (-1 is one group a row)",
                )
            )
    return problems


def _form_problems(linears: tuple[LinearPlan, ...], grids: Grids, recipe: Recipe) -> list[PlanProblem]:
    problems = []
    alike: dict[tuple[int, str], LinearPlan] = {}
    for linear in linears:
        first = alike.setdefault((linear.layer, linear.stage), linear)
        if grids[linear.name] != grids[first.name]:
            wrong = f"{linear.name} has another grid than {first.name}, which shares its input"
            problems.append(PlanProblem(wrong, "linears that share an input are rounded, and served, as one"))
    first_of = {form: name for name, form in reversed(forms_of(linears, grids).items())}
    for form, name in sorted(first_of.items(), key=lambda item: (item[0].shape, item[0].bits)):
        reason = CODECS[recipe.format].problem(form)
        if reason:
            problems.append(PlanProblem(f"{name}: {reason}", _way_out(form, recipe)))
    return problems


def _device_problems(
    checkpoint: Checkpoint,
    arch: Architecture,
    linears: tuple[LinearPlan, ...],
    grids: Grids,
    recipe: Recipe,
    devices: int,
) -> list[PlanProblem]:
    """Why no serving runtime can split this over its devices."""

    def verdicts(size: int) -> list[preflight.Verdict]:
        sized = {name: grid and replace(grid, group_size=size) for name, grid in grids.items()}
        found = preflight.runtimes(arch, checkpoint.config, forms_of(linears, sized), devices)
        return [v for v in found if recipe.format in (*v.loads, *v.refuses) and v.runtime in preflight.SERVING]

    mine = verdicts(recipe.group_size)
    if not mine or any(recipe.format in verdict.loads for verdict in mine):
        return []
    smaller = [g for g in GROUP_SIZES if any(recipe.format in v.loads for v in verdicts(g))]
    hint = f"use --group-size {' or '.join(map(str, smaller))}" if smaller else "use fewer devices"
    return [PlanProblem(f"{mine[0].runtime} cannot split this: {mine[0].refuses[recipe.format]}", hint)]


def _text_problems(checkpoint: Checkpoint, recipe: Recipe) -> list[PlanProblem]:
    if not recipe.calibrated:
        return []
    problems = []
    longest = checkpoint.config.get("max_position_embeddings")
    if isinstance(longest, int) and recipe.seq_len > longest:
        problems.append(
            PlanProblem(f"seq-len {recipe.seq_len} is longer than the model's {longest} positions", "lower --seq-len")
        )
    if "tokenizer.json" not in checkpoint.side_files:
        problems.append(
            PlanProblem(
                f"{checkpoint.source} has no tokenizer.json, which calibration needs",
                "add the model's tokenizer files, or use --method rtn",
                CheckpointError,
            )
        )
    elif recipe.calib == SELF and not has_chat_template(checkpoint.side_files):
        problems.append(
            PlanProblem(
                f"{checkpoint.source} has no chat template, so that it cannot be asked to write its own text",
                "give a text with --calib FILE, or leave out --calib",
            )
        )
    return problems


def _way_out(form: LinearSpec, recipe: Recipe) -> str:
    """What to change where a format cannot hold a linear."""
    fitting = [name for name, codec in CODECS.items() if not codec.problem(form)]
    other = f"--format {' or '.join(fitting)}" if fitting else ""
    for bits in (4, 8):
        if not CODECS[recipe.format].problem(LinearSpec.planned(form.shape, replace(recipe, bits=bits).grid)):
            return f"use --bits {bits}, or {other or 'another --format'}"
    return f"use {other}" if other else "no format holds this linear on this grid"


def _layout(
    checkpoint: Checkpoint, arch: Architecture, linears: tuple[LinearPlan, ...], recipe: Recipe, grids: Grids
) -> Layout:
    groups_fit = all(recipe.group_size == -1 or linear.shape[1] % recipe.group_size == 0 for linear in linears)
    linear_specs = forms_of(linears, grids) if groups_fit else {}
    tensors = (TensorSpec(info.name, info.dtype, info.shape) for info in checkpoint.tensors.values())
    return layouts.make(tensors, arch, linear_specs, CODECS[recipe.format])


def _place_problems(out: Path, estimate: Estimate) -> list[PlanProblem]:
    parent = out.absolute().parent
    if not parent.is_dir():
        return [PlanProblem(f"the folder {parent} does not exist", "create it, or choose another --out")]
    if not os.access(parent, os.W_OK):
        return [PlanProblem(f"the folder {parent} is not writable", "choose another --out")]
    needed, free = estimate.output_bytes + estimate.run_bytes, shutil.disk_usage(parent).free
    if needed <= free:
        return []
    return [
        PlanProblem(
            f"not enough disk space in {parent}: {bytes_text(needed)} needed, {bytes_text(free)} free",
            "free some space, or choose another --out",
            OutOfSpaceError,
        )
    ]


def _cache_warnings(estimate: Estimate) -> list[str]:
    """A pass that is kept there already needs no space, which is not known before the weights are hashed."""
    cache = cache_folder()
    there = next((folder for folder in (cache, *cache.absolute().parents) if folder.is_dir()), None)
    if there is None or estimate.cache_bytes <= (free := shutil.disk_usage(there).free):
        return []
    needed = f"{bytes_text(estimate.cache_bytes)}, and {bytes_text(free)} are free"
    return [f"the cache {cache} may need {needed}: set R1QUANT_CACHE to a folder on another disk"]


def _warnings(
    checkpoint: Checkpoint, arch: Architecture, linears: tuple[LinearPlan, ...], grids: Grids, recipe: Recipe
) -> list[str]:
    warnings = []
    for verdict in preflight.runtimes(arch, checkpoint.config, forms_of(linears, grids)):
        reason = verdict.refuses.get(recipe.format)
        if reason and verdict.runtime in preflight.SERVING:
            others = f"; it loads {' and '.join(verdict.loads)}, which export writes" if verdict.loads else ""
            loaded = preflight.mixed_bits(recipe.format, recipe.symmetric, verdict.runtime)
            if recipe.budgeted and len(loaded) > 1:
                others += f"; --allowed-bits {','.join(map(str, sorted(loaded)))} chooses among those that it loads"
            warnings.append(f"{verdict.runtime} does not load {recipe.format} on this grid: {reason}{others}")
    cautions = preflight.cautions(arch, checkpoint.config, forms_of(linears, grids), recipe.format)
    warnings += [f"{runtime}: {text}" for runtime, text in cautions.items()]
    stretched = yarn(checkpoint.config)
    if stretched is not None and stretched.disagree:
        warnings.append(stretched.explanation)
    if "tokenizer.json" not in checkpoint.side_files:
        warnings.append("no tokenizer.json: the result cannot be used without a tokenizer from elsewhere")
    elif not has_chat_template(checkpoint.side_files):
        warnings.append("no chat template: chat prompts will have to be formatted by hand")
    if selfcalib.writes(recipe):
        weights = sum(linear.weights for linear in linears)
        warnings += selfcalib.foretell(selfcalib.predict(checkpoint, recipe, weights), recipe)
    if checkpoint.config.get("tie_word_embeddings"):
        warnings.append("embedding and head are tied: they stay in float, as one tensor")
    return warnings

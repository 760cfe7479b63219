"""What stops a quantization, and what the user should know of it, as headers and recipe tell. No weight is read."""

from __future__ import annotations

from dataclasses import replace

from r1quant.arch.tables import NO_RESIDUAL_ROTATION, Architecture, is_tied
from r1quant.arch.yarn import yarn
from r1quant.checkpoint.artifact import LinearSpec, has_chat_template
from r1quant.checkpoint.safetensors import Checkpoint
from r1quant.core.floats import FLOAT_DTYPES
from r1quant.core.grid import GROUP_SIZES, Grid, Grids
from r1quant.data import selfcalib
from r1quant.data.texts import SELF
from r1quant.errors import CheckpointError
from r1quant.formats.codec import table_problem
from r1quant.formats.table import CODECS, ENCODERS
from r1quant.planning import preflight
from r1quant.planning.linears import LinearPlan, PlanProblem, forms_of
from r1quant.recipe import FLOAT, Recipe


def tensor_problems(checkpoint: Checkpoint, arch: Architecture) -> list[PlanProblem]:
    """Whether the checkpoint holds exactly the tensors that its config implies, in float."""
    shapes, again = arch.shapes(checkpoint.config), "download the model again"
    tied = is_tied(checkpoint.config)
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


def already_quantized(checkpoint: Checkpoint) -> list[PlanProblem]:
    if checkpoint.config.get("quantization_config") is None:
        return []
    return [
        PlanProblem(
            f"{checkpoint.source} is quantized already",
            "quantize the BF16, FP16 or FP32 model it was made from",
            CheckpointError,
        )
    ]


def group_problems(linears: tuple[LinearPlan, ...], recipe: Recipe) -> list[PlanProblem]:
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


def table_problems(checkpoint: Checkpoint, recipe: Recipe) -> list[PlanProblem]:
    """Whether the format holds the tables that the recipe gives bits. Their columns are those of other linears."""
    problems, tied = [], is_tied(checkpoint.config)
    for table, bits in recipe.table_bits.items():
        reason = table_problem(recipe.format, table, tied) if bits != FLOAT else None
        if reason:
            other = next((name for name in CODECS if table_problem(name, table, tied) is None), "gguf")
            problems.append(PlanProblem(reason, f"leave out --{table}-bits, or use --format {other}"))
    return problems


def block_problems(linears: tuple[LinearPlan, ...], grids: Grids) -> list[PlanProblem]:
    """GGUF's blocks have at least 32 columns."""
    odd = next((linear for linear in linears if grids[linear.name] is None), None)
    if odd is None:
        return []
    reason = f"{odd.name} has {odd.shape[1]} columns, which are not a multiple of 32, the smallest block of GGUF"
    return [PlanProblem(reason, "use --format gptq or compressed-tensors with a --group-size that divides them")]


def form_problems(linears: tuple[LinearPlan, ...], grids: Grids, recipe: Recipe) -> list[PlanProblem]:
    problems = []
    alike: dict[tuple[int, str], LinearPlan] = {}
    for linear in linears:
        first = alike.setdefault((linear.layer, linear.stage), linear)
        if not recipe.typed and grids[linear.name] != grids[first.name]:
            message = f"{linear.name} has another grid than {first.name}, which shares its input"
            problems.append(PlanProblem(message, "linears that share an input are rounded, and served, as one"))
    first_of = {form: name for name, form in reversed(forms_of(linears, grids).items())}
    for form, name in sorted(first_of.items(), key=lambda item: (item[0].shape, item[0].bits)):
        reason = ENCODERS[recipe.format].problem(form)
        if reason:
            problems.append(PlanProblem(f"{name}: {reason}", _way_out(form, recipe)))
    return problems


def device_problems(
    checkpoint: Checkpoint,
    arch: Architecture,
    linears: tuple[LinearPlan, ...],
    grids: Grids,
    recipe: Recipe,
    devices: int,
) -> list[PlanProblem]:
    """Why no serving runtime can split this over its devices."""

    def verdicts(size: int) -> list[preflight.Verdict]:
        sized = {n: replace(grid, group_size=size) if isinstance(grid, Grid) else grid for n, grid in grids.items()}
        runtimes = preflight.runtimes(arch, checkpoint.config, forms_of(linears, sized), devices)
        return [v for v in runtimes if recipe.format in (*v.loads, *v.refuses) and v.runtime in preflight.SERVING]

    ours = verdicts(recipe.group_size)
    if not ours or any(recipe.format in verdict.loads for verdict in ours):
        return []
    smaller = [g for g in GROUP_SIZES if any(recipe.format in v.loads for v in verdicts(g))]
    hint = f"use --group-size {' or '.join(map(str, smaller))}" if smaller else "use fewer devices"
    return [PlanProblem(f"{ours[0].runtime} cannot split this: {ours[0].refuses[recipe.format]}", hint)]


def rotation_problems(arch: Architecture, recipe: Recipe) -> list[PlanProblem]:
    if recipe.rotate not in ("r1", "both") or not arch.layer.post_norms:
        return []
    reason, hint = NO_RESIDUAL_ROTATION
    return [PlanProblem(f"{arch.model_type}: {reason}", hint)]


def text_problems(checkpoint: Checkpoint, recipe: Recipe) -> list[PlanProblem]:
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
    """What to change if a format cannot hold a linear."""
    fitting = [name for name, codec in CODECS.items() if not codec.problem(form)]
    other = f"--format {' or '.join(fitting)}" if fitting else ""
    for bits in (4, 8):
        if not CODECS[recipe.format].problem(LinearSpec.planned(form.shape, replace(recipe, bits=bits).value_grid)):
            return f"use --bits {bits}, or {other or 'another --format'}"
    return f"use {other}" if other else "no format holds this linear on this grid"


def warnings_of(
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
    if is_tied(checkpoint.config) and not recipe.typed:
        warnings.append("embedding and head are tied: they stay in float, as one tensor")
    return warnings

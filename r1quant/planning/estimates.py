"""Estimates: what a quantization will take in bytes and seconds. Output bytes are exact, the others a cost model."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from itertools import pairwise

from r1quant.arch.tables import is_tied, size
from r1quant.checkpoint.safetensors import Checkpoint
from r1quant.core.blocktypes import BlockGrid
from r1quant.core.grid import Grids, ValueGrid
from r1quant.core.limits import BACKWARD_TOKENS, BLOCK, BOUNDARY_BYTES, HEAD_TOKENS, KEPT_LIMIT, TABLE_WEIGHTS
from r1quant.data import selfcalib
from r1quant.formats.table import ENCODERS
from r1quant.planning.choices import allowed, tried
from r1quant.planning.layout import Layout, OneFile
from r1quant.planning.linears import HEAD, LinearPlan
from r1quant.recipe import Recipe
from r1quant.registry import METHODS, MethodCost

PROCESS_BYTES = 700_000_000  # interpreter, torch, transformers and compiled kernels
TRIED = 40 * 1024  # rows that AWQ rounds for each stage, all candidates together
RATE = 1.2e11  # operations a second and core
SCALES, BOOKS = 2e4, 1.2e5  # of them, for choosing the scales of a weight on blocks; if they have a code book
TRIAL = 5e4  # of them, for the time that rounding a weight on trial takes beside products of matrices


@dataclass(frozen=True)
class Estimate:
    """Predictions, in bytes and seconds. Output bytes are exact; the others come from a cost model.

    output_bytes without the Modelfile that is beside a GGUF file
    run_bytes    of the run directory at its largest
    cache_bytes  what a sensitivity pass and the choice of factors add to the cache at the most, if it does not have
                 them yet; kept_bytes, of these, stay there
    """

    output_bytes: int
    run_bytes: int
    peak_rss_bytes: int
    seconds: float
    cache_bytes: int = 0
    kept_bytes: int = 0


def estimated(
    checkpoint: Checkpoint,
    recipe: Recipe,
    linears: tuple[LinearPlan, ...],
    tables: tuple[LinearPlan, ...],
    grids: Grids,
    layout: Layout | OneFile,
) -> Estimate:
    """grids: of every linear, and of the tables that are rounded; layout: of the files that are written."""
    output = layout.nbytes
    if isinstance(layout, Layout):
        output += sum(map(len, checkpoint.side_files.values())) + len(checkpoint.config_text)
    rounded = [matrix for matrix in (*linears, *tables) if grids.get(matrix.name) is not None]
    parts = sum(linear.stored(grids[linear.name], ENCODERS[recipe.format]) for linear in rounded)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    weights = sum(linear.weights for linear in linears)
    shapes = _Shapes.of(checkpoint, recipe, linears)
    method = METHODS[recipe.method]
    if method.calibrated:
        scales = sum(linear.weights * _scales(grids[linear.name]) for linear in linears)
        passes = [_rounding(shapes, recipe), _Pass(0, 0, scales)]
    else:
        passes = [_Pass(shapes.largest * method.cost.nbytes, 0, weights * method.cost.per_weight)]
    passes += [_table(shapes, recipe, table, grid) for table in tables if (grid := grids.get(table.name)) is not None]
    if (recipe.guided and method.calibrated) or recipe.budgeted:
        passes.append(_sensitivity(replace(shapes, tokens=recipe.guided_windows * recipe.seq_len), recipe.draws))
    if recipe.budgeted:
        passes.append(_foresight(shapes, recipe, len(tried(recipe, allowed(recipe, linears)))))
    if recipe.factors is not None:
        passes.append(_factors(shapes))
    memory = PROCESS_BYTES + max(each.memory for each in passes)
    seconds = (20 if recipe.calibrated else 10) + sum(each.work for each in passes) / (RATE * cores)
    if selfcalib.writes(recipe):
        writing = selfcalib.predict(checkpoint, recipe, weights)
        memory, seconds = max(memory, PROCESS_BYTES + writing.memory_bytes), seconds + writing.seconds
    run, kept = parts + sum(each.disk for each in passes), sum(each.kept for each in passes)
    return Estimate(output, run, memory, seconds, kept + max(each.cache for each in passes), kept)


@dataclass(frozen=True)
class _Pass:
    """memory and disk (of the run directory) in bytes, work in floating-point operations; cache while it runs, and
    what it leaves there"""

    memory: int
    disk: int
    work: float
    cache: int = 0
    kept: int = 0


@dataclass(frozen=True)
class _Shapes:
    """What the cost of a pass follows from; weights, rows and squares are of one decoder layer.

    stages   for each, its weights, its input channels and how many linears it has
    tied     whether head and embedding are one tensor
    item     bytes of an activation on the disk: if the dtype is automatic, those of float32
    """

    tokens: int
    hidden: int
    vocabulary: int
    depth: int
    weights: int
    largest: int
    linears: tuple[tuple[int, int], ...]
    stages: tuple[tuple[int, int, int], ...]
    tied: bool
    item: int

    @classmethod
    def of(cls, checkpoint: Checkpoint, recipe: Recipe, linears: tuple[LinearPlan, ...]) -> _Shapes:
        first = [linear for linear in linears if linear.layer == 0]
        stages = [[x for x in first if x.stage == stage] for stage in dict.fromkeys(x.stage for x in first)]
        return cls(
            recipe.windows * recipe.seq_len,
            size(checkpoint.config, "hidden_size"),
            size(checkpoint.config, "vocab_size"),
            1 + max((linear.layer for linear in linears), default=0),
            sum(linear.weights for linear in first),
            max((linear.weights for linear in first), default=0),
            tuple(linear.shape for linear in first),
            tuple((sum(x.weights for x in stage), stage[0].shape[1], len(stage)) for stage in stages),
            is_tied(checkpoint.config),
            2 if recipe.dtype in ("bfloat16", "float16") else 4,
        )

    @property
    def forward(self) -> float:
        return 2.0 * self.tokens * self.weights * self.depth

    @property
    def hessians(self) -> float:
        return 2.0 * self.tokens * self.depth * sum(columns**2 for _, columns, _ in self.stages)

    def solving(self, cost: MethodCost) -> float:
        """All linears once, by a method."""
        products = sum(rows * columns**2 for rows, columns in self.linears)
        return self.depth * (cost.per_product * products + cost.per_weight * self.weights)

    @property
    def boundary(self) -> int:
        """The activations between two layers, in bfloat16."""
        return self.tokens * self.hidden * 2


def _rounding(shapes: _Shapes, recipe: Recipe) -> _Pass:
    """Layer by layer; if the float model runs beside, its layer and what belongs to its part of the text are there
    as well."""
    layers, cost = 2 if recipe.corrected else 1, METHODS[recipe.method].cost
    streams = 1 + recipe.corrected_windows / recipe.windows
    solve = max((weights * cost.nbytes + 12 * layers * columns**2 for weights, columns, _ in shapes.stages), default=0)
    read = [shapes.tokens * columns * 2 for _, columns, _ in shapes.stages]
    held = [nbytes if nbytes <= KEPT_LIMIT else 0 for nbytes in read]
    kept = max(map(sum, pairwise([0, *held])), default=0)  # of a stage and the one before
    layer = max(shapes.vocabulary * shapes.hidden * 2, layers * shapes.weights * 2 + solve)
    memory = layer + streams * (2 * shapes.boundary + kept)
    disk = 2 * streams * shapes.tokens * shapes.hidden * shapes.item  # two boundaries
    return _Pass(int(memory), int(disk), streams * (shapes.forward + shapes.hessians) + shapes.solving(cost))


def _table(shapes: _Shapes, recipe: Recipe, table: LinearPlan, grid: ValueGrid) -> _Pass:
    """A piece of rows at a time, the float matrix and what it becomes whole. A head is rounded by what it reads, as is
    a matrix that is head and embedding."""
    cost, columns = METHODS[recipe.method].cost, table.shape[1]
    pieces = min(table.weights, TABLE_WEIGHTS) * (4 + cost.nbytes)
    codes = 2 * table.weights  # the pieces, and all of them as one
    read = METHODS[recipe.method].calibrated and (table.stage == HEAD or shapes.tied)
    nearest = not read and not isinstance(grid, BlockGrid)
    choosing = METHODS["rtn"].cost.per_weight if nearest else _scales(grid)
    memory, work = table.nbytes + pieces + codes, table.weights * choosing
    if read:
        memory += shapes.boundary + 16 * columns**2
        work += 2.0 * shapes.tokens * columns**2 + cost.per_product * table.weights * columns
    return _Pass(memory, 0, work)


def _scales(grid: ValueGrid | None) -> float:
    if not isinstance(grid, BlockGrid):
        return 0.0
    return SCALES if grid.of.book is None else BOOKS


def _sensitivity(shapes: _Shapes, draws: int) -> _Pass:
    """Forward and backward for each draw, with what is kept of every layer."""
    covariances = sum(rows**2 // math.ceil(rows / BLOCK) for rows, _ in shapes.linears)
    outputs = sum(rows for rows, _ in shapes.linears)
    head = 4 * shapes.vocabulary * 4 * HEAD_TOKENS + 2 * shapes.vocabulary * shapes.hidden
    layer = shapes.weights * 2 + 4 * covariances + BACKWARD_TOKENS * outputs * 12
    boundaries = min(BOUNDARY_BYTES, shapes.depth * shapes.tokens * shapes.hidden * shapes.item)
    found = shapes.depth * 4 * (covariances + shapes.tokens * len(shapes.linears))
    scoring = 4.0 * shapes.tokens * shapes.vocabulary * shapes.hidden
    work = 4 * shapes.forward + 2.0 * shapes.tokens * shapes.depth * covariances + scoring
    return _Pass(max(head, layer) + 4 * shapes.boundary, 0, draws * work, boundaries, draws * found)


def _foresight(shapes: _Shapes, recipe: Recipe, trials: int) -> _Pass:
    """Forward, with a Hessian for each linear, and a trial at each number of bits; that of a method with feedback by
    the Hessian of the stage."""
    solve = max((weights * 24 + (12 + 4 * n) * columns**2 for weights, columns, n in shapes.stages), default=0)
    memory = max(shapes.vocabulary * shapes.hidden * 2, shapes.weights * 2 + solve) + 2 * shapes.boundary
    linears = 2.0 * shapes.tokens * shapes.depth * sum(columns**2 for _, columns in shapes.linears)
    method = METHODS[recipe.method]
    solving, hessians = (shapes.solving(method.cost), shapes.hessians) if method.feedback else (0.0, 0.0)
    each = solving + TRIAL * shapes.depth * shapes.weights
    return _Pass(memory, 0, shapes.forward + hessians + linears + trials * each)


def _factors(shapes: _Shapes) -> _Pass:
    """Forward, and for each stage the candidates of AWQ."""
    solve = max((weights * 8 + 8 * columns**2 for weights, columns, _ in shapes.stages), default=0)
    memory = max(shapes.vocabulary * shapes.hidden * 2, shapes.weights * 2 + solve) + 2 * shapes.boundary
    tried = 2.0 * TRIED * shapes.depth * sum(columns**2 for _, columns, _ in shapes.stages)
    return _Pass(memory, 0, shapes.forward + shapes.hessians + tried, 2 * shapes.boundary)

"""Budget: how many bytes a recipe allows, which bits or types the matrices may have within it, and which are best.

Linears of one layer that share an input get the same bits, because runtimes fuse them; of the types of GGUF each matrix
gets its own. What a matrix loses at each choice is predicted elsewhere; no weight is read here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

from r1quant.arch.tables import Architecture
from r1quant.checkpoint.safetensors import Checkpoint
from r1quant.core.blocktypes import BLOCK_TYPES, BlockGrid
from r1quant.core.formatting import bytes_text
from r1quant.core.grid import BITS, Grids, ValueGrid
from r1quant.core.json import JsonObject
from r1quant.errors import NumericError, RecipeError
from r1quant.formats.table import CODECS
from r1quant.hardware.cards import card
from r1quant.hardware.memory import runtime_bytes, usable
from r1quant.hardware.roofline import sizes
from r1quant.planning import allocate
from r1quant.planning.choices import SMALL_TYPES, Choice, allowed, choices_of, even, grid_of, holds, stored, text
from r1quant.planning.layout import Layout, OneFile
from r1quant.planning.linears import LinearPlan, PlanProblem
from r1quant.planning.recommend import what_fits
from r1quant.recipe import FLOAT, Recipe

LayoutOf = Callable[[Grids], Layout | OneFile]


@dataclass(frozen=True)
class LossPredictions:
    """What rounding each matrix alone is expected to cost.

    losses  by matrix and choice, in nats of KL divergence a token; those of a matrix in float are 0
    source  how they came about, for the record
    """

    losses: Mapping[str, Mapping[Choice, float]]
    source: str

    def of(self, matrix: str, choice: Choice) -> float:
        """Raises NumericError if it is not known, or no finite number."""
        loss = 0.0 if choice == FLOAT else self.losses.get(matrix, {}).get(choice)
        if loss is None or not 0 <= loss < float("inf"):
            unknown = f"no loss is predicted for {matrix} at {text(choice)}"
            raise NumericError(
                unknown if loss is None else f"{matrix} loses {loss}", "make the sensitivity pass again, in float32"
            )
        return loss

    @staticmethod
    def even(matrices: Sequence[LinearPlan]) -> LossPredictions:
        """As if every weight mattered alike."""
        choices: tuple[Choice, ...] = (*BITS, *BLOCK_TYPES)
        losses = {matrix.name: {choice: even(matrix, choice) for choice in choices} for matrix in matrices}
        return LossPredictions(losses, "every weight alike")


@dataclass(frozen=True)
class BitsTarget:
    """So many stored bits per weight of the matrices to choose for."""

    target_bpw: float


@dataclass(frozen=True)
class SizeTarget:
    """So many bytes of all weight files."""

    target_size: int


@dataclass(frozen=True)
class CardTarget:
    """What a card leaves for weights: usable_bytes less those of the runtime and of the cache of `context` tokens."""

    card: str
    memory_bytes: int
    usable_bytes: int
    runtime_bytes: int
    context: int
    kv_bytes_per_token: float
    kv_bytes: int


@dataclass(frozen=True)
class Budget:
    """nbytes: of the matrices to choose for, or of all weight files; choices: the bits or types to choose from; terms:
    where it comes from."""

    nbytes: int
    of: Literal["linears", "files"]
    choices: tuple[Choice, ...]
    terms: BitsTarget | SizeTarget | CardTarget

    def as_dict(self) -> JsonObject:
        return {"bytes": self.nbytes, "of": self.of, "choices": list(self.choices), **asdict(self.terms)}


@dataclass(frozen=True)
class Allocation:
    """What was chosen: the grids, what they are predicted to lose together, and how much less could be lost at most.

    source is that of the predictions; None if there were none, and every weight counted alike.
    """

    grids: Grids
    loss: float
    gap: float
    source: str | None

    @property
    def bits(self) -> dict[str, int]:
        """Of each linear that is not on a type of GGUF."""
        grids = {name: grid for name, grid in self.grids.items() if not isinstance(grid, BlockGrid)}
        return {name: FLOAT if grid is None else grid.bits for name, grid in grids.items()}

    @property
    def types(self) -> dict[str, str]:
        """Of each matrix on a type of GGUF."""
        return {name: grid.type for name, grid in self.grids.items() if isinstance(grid, BlockGrid)}

    def as_dict(self) -> JsonObject:
        types = {"types": self.types} if self.types else {}
        return {"source": self.source, "predicted_kl": self.loss, "gap": self.gap, "bits": self.bits, **types}

    def __str__(self) -> str:
        by_size = sorted(Counter(self.types.values()).items(), key=lambda item: BLOCK_TYPES[item[0]].bits_per_weight)
        counts = [f"{bits} bits for {count} linears" for bits, count in sorted(Counter(self.bits.values()).items())]
        counts = [f"{type} for {count} matrices" for type, count in by_size] or counts
        return f"{', '.join(counts)}; predicted KL divergence {self.loss:.3g}"


def budget_of(
    checkpoint: Checkpoint, arch: Architecture, recipe: Recipe, matrices: tuple[LinearPlan, ...], layout_of: LayoutOf
) -> tuple[Budget | None, list[PlanProblem]]:
    """The budget of a recipe that has one; or why it cannot be kept, with the numbers.

    matrices  all that there is something to choose for: linears and, of GGUF, embedding and head

    Raises RecipeError for a card that is not known.
    """
    among = allowed(recipe, matrices)
    named: tuple[Choice, ...] = recipe.allowed_types if recipe.typed else recipe.allowed_bits
    absent = sorted(str(choice) for choice in set(named) - set(among))
    if len(among) < 2 or absent:
        return None, [_unmixed(recipe, matrices, among, absent)]
    weights = sum(matrix.weights for matrix in matrices)
    if recipe.target_bpw is not None:
        target = BitsTarget(recipe.target_bpw)
        budget = Budget(int(round(recipe.target_bpw * weights / 8, 3)), "linears", among, target)
    elif recipe.target_size is not None:
        budget = Budget(recipe.target_size, "files", among, SizeTarget(recipe.target_size))
    else:
        budget, problems = _on_card(checkpoint, arch, recipe, among)
        if problems:
            return None, problems
    least = _least(matrices, recipe, budget, layout_of)
    if least > budget.nbytes and recipe.typed and not named:
        budget = replace(budget, choices=SMALL_TYPES)
        least = _least(matrices, recipe, budget, layout_of)
    if least <= budget.nbytes:
        return budget, []
    problem = _too_small(budget, recipe, least, weights)
    if recipe.fit_gpu is not None:
        held = what_fits(checkpoint, card(recipe.fit_gpu), recipe.context or 0)
        problem = replace(problem, hint=f"{problem.hint}; {held}")
    return None, [problem]


def _least(matrices: tuple[LinearPlan, ...], recipe: Recipe, budget: Budget, layout_of: LayoutOf) -> int:
    """The bytes that a budget speaks of if everything is as small as it can be."""
    smallest = _smallest(matrices, recipe, budget.choices)
    if budget.of == "files":
        return layout_of({name: grid_of(recipe, choice) for name, choice in smallest.items()}).nbytes
    return sum(stored(recipe, matrix, smallest[matrix.name]) for matrix in matrices)


def decide(
    matrices: tuple[LinearPlan, ...], recipe: Recipe, budget: Budget, layout_of: LayoutOf, predictions: LossPredictions
) -> Allocation:
    """The grids that lose the least within a budget.

    Raises NumericError if a prediction is missing, RecipeError if nothing would be quantized.
    """
    groups: dict[tuple[int, str], list[LinearPlan]] = {}
    for matrix in matrices:
        groups.setdefault((matrix.layer, matrix.name if recipe.typed else matrix.stage), []).append(matrix)
    choices = [_common(recipe, group, budget.choices) for group in groups.values()]
    sized = [
        [sum(stored(recipe, x, choice) for x in group) for choice in among]
        for group, among in zip(groups.values(), choices, strict=True)
    ]
    losses = [
        [sum(predictions.of(x.name, choice) for x in group) for choice in among]
        for group, among in zip(groups.values(), choices, strict=True)
    ]
    limit, least = budget.nbytes, sum(map(min, sized))
    if budget.of == "files":
        limit += least - _least(matrices, recipe, budget, layout_of)
    while True:  # headers of files change a little with the choice
        best = allocate.solve(losses, sized, max(limit, least))
        grids: dict[str, ValueGrid | None] = {}
        for group, among, chosen in zip(groups.values(), choices, best.chosen, strict=True):
            grids |= dict.fromkeys((x.name for x in group), grid_of(recipe, among[chosen]))
        over = layout_of(grids).nbytes - budget.nbytes if budget.of == "files" else 0
        if over <= 0 or best.nbytes == least:
            break
        limit = best.nbytes - over
    if not any(grids.values()):
        raise RecipeError("within this budget every linear stays in float", "ask for less, or leave out 16 bits")
    return Allocation({matrix.name: grids[matrix.name] for matrix in matrices}, best.loss, best.gap, predictions.source)


def _common(recipe: Recipe, group: Sequence[LinearPlan], among: Sequence[Choice]) -> tuple[Choice, ...]:
    """The choices that all of a group may have."""
    first, *others = (choices_of(recipe, matrix, among) for matrix in group)
    return tuple(choice for choice in first if all(choice in other for other in others))


def _smallest(matrices: tuple[LinearPlan, ...], recipe: Recipe, among: tuple[Choice, ...]) -> dict[str, Choice]:
    """The choice of the fewest bytes that each matrix may have."""
    return {
        matrix.name: min(choices_of(recipe, matrix, among), key=lambda choice: stored(recipe, matrix, choice))
        for matrix in matrices
    }


def _on_card(
    checkpoint: Checkpoint, arch: Architecture, recipe: Recipe, among: tuple[Choice, ...]
) -> tuple[Budget, list[PlanProblem]]:
    """What a card leaves for weights beside the runtime and the cache of one text, whose numbers have 16 bits."""
    gpu, context = card(recipe.fit_gpu or ""), recipe.context or 0
    of = sizes(checkpoint.config, arch)
    cache = round(of.cached(context))
    runtime = runtime_bytes(gpu) + of.activations.nbytes(context, 1)
    terms = CardTarget(gpu.name, gpu.memory_bytes, usable(gpu), runtime, context, of.kv_bytes, cache)
    problems, longest = [], checkpoint.config.get("max_position_embeddings")
    if isinstance(longest, int) and context > longest:
        message = f"context {context} is longer than the model's {longest} positions"
        problems.append(PlanProblem(message, "lower --context"))
    return Budget(usable(gpu) - runtime - cache, "files", among, terms), problems


def _unmixed(
    recipe: Recipe, linears: tuple[LinearPlan, ...], among: tuple[Choice, ...], absent: list[str]
) -> PlanProblem:
    """What to say if a format does not hold what is to be chosen from."""
    if recipe.typed:
        return PlanProblem(f"with {among[0]} alone there is nothing to choose", "allow more, or use --type")
    named = recipe.allowed_bits or BITS
    wanted = named if absent else ()
    able = []
    for name, codec in CODECS.items():
        held = [b for b in named if any(holds(replace(recipe, format=name), x, b, codec) for x in linears)]
        if len(held) > 1 and set(wanted) <= set(held):
            able.append(name)
    has = " and ".join(map(str, among)) or "none of these"
    if absent:
        message = f"{recipe.format} does not hold {' or '.join(absent)} bits here"
    elif recipe.allowed_bits:
        return PlanProblem(f"with {has} bits alone there is nothing to choose", "allow more, or use --bits")
    else:
        message = f"{recipe.format} holds {has} bits alone, so linears cannot differ in bits"
    return PlanProblem(message, f"use --format {' or '.join(able)}" if able else "allow other bits")


def _wider(recipe: Recipe, budget: Budget) -> str:
    """What makes the weights smaller, of what is not chosen already."""
    if recipe.typed:
        fewer = ["smaller types (--allowed-types)"] if recipe.allowed_types else []
        return f"use {' or '.join([*fewer, 'a smaller model'])}"
    formats = "" if recipe.format == "compressed-tensors" else ", or --format compressed-tensors"
    least = min(choice for choice in budget.choices if isinstance(choice, int))
    fewer = [f"fewer bits (--allowed-bits{formats})"] if least > min(BITS) else []
    groups = ["larger groups"] if recipe.group_size != -1 else []
    return f"use {', '.join([*fewer, *groups]) or 'a smaller model'}"


def _fewest(choices: Sequence[Choice]) -> str:
    """The smallest of them in words."""
    counts = [choice for choice in choices if isinstance(choice, int)]
    types = [choice for choice in choices if isinstance(choice, str)]
    return text(min(counts) if counts else min(types, key=lambda type: BLOCK_TYPES[type].bits_per_weight))


def _too_small(budget: Budget, recipe: Recipe, least: int, weights: int) -> PlanProblem:
    """What to say if even the fewest bits are too many."""
    fewest, wider = _fewest(budget.choices), _wider(recipe, budget)
    if recipe.target_bpw is not None:
        message = f"{recipe.target_bpw:g} bits a weight are too few: {fewest} everywhere take {8 * least / weights:.3f}"
        return PlanProblem(message, f"{wider}, or a higher --target-bpw")
    if recipe.target_size is not None:
        message = f"{bytes_text(budget.nbytes)} are too few: with {fewest} everywhere the weight files take "
        message += bytes_text(least)
        return PlanProblem(message, f"{wider}, or a higher --target-size")
    terms = budget.terms
    if not isinstance(terms, CardTarget):
        raise ValueError("a budget is of bits, of bytes, or of a card")
    room = (terms.usable_bytes - terms.runtime_bytes - least) // terms.kv_bytes_per_token
    message = (
        f"the {terms.card} is too small: of {bytes_text(terms.memory_bytes)}, "
        f"{bytes_text(terms.usable_bytes)} are usable, less {bytes_text(terms.runtime_bytes)} of runtime and "
        f"{bytes_text(terms.kv_bytes)} of cache for {terms.context} tokens, which leaves "
        f"{bytes_text(max(0, budget.nbytes))}; with {fewest} everywhere the weight files take {bytes_text(least)}"
    )
    shorter = f", or --context {room} at most" if room > 0 else ""
    return PlanProblem(message, f"{wider}, a larger card{shorter}")

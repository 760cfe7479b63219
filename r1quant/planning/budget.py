"""Budget: how many bytes a recipe allows, which bits the linears may have within it, and which are best.

Linears of one layer that share an input get the same bits, because runtimes fuse them. What a linear loses at each
number of bits is predicted elsewhere; no weight is read here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

from r1quant.arch.tables import Architecture
from r1quant.checkpoint.artifact import LinearSpec
from r1quant.checkpoint.safetensors import Checkpoint
from r1quant.core.formatting import bytes_text
from r1quant.core.grid import BITS, Grid, Grids
from r1quant.core.json import JsonObject
from r1quant.errors import NumericError, RecipeError
from r1quant.formats.codec import Codec
from r1quant.formats.table import CODECS
from r1quant.hardware.cards import card
from r1quant.hardware.memory import runtime_bytes, usable
from r1quant.hardware.roofline import sizes
from r1quant.planning import allocate, preflight
from r1quant.planning.layout import Layout, OneFile
from r1quant.planning.linears import LinearPlan, PlanProblem
from r1quant.planning.recommend import what_fits
from r1quant.recipe import FLOAT, Recipe
from r1quant.registry import METHODS

LayoutOf = Callable[[Grids], Layout | OneFile]
MOST_TRIED = 5  # bits: beyond, each more leaves a quarter of the loss (SmolLM2: 0.25, 0.24, 0.25 at 6, 7 and 8)


@dataclass(frozen=True)
class LossPredictions:
    """What rounding each linear alone is expected to cost.

    losses  by linear and bits, in nats of KL divergence a token; those of a linear in float are 0
    source  how they came about, for the record
    """

    losses: Mapping[str, Mapping[int, float]]
    source: str

    def of(self, linear: str, bits: int) -> float:
        """Raises NumericError if it is not known, or no finite number."""
        loss = 0.0 if bits == FLOAT else self.losses.get(linear, {}).get(bits)
        if loss is None or not 0 <= loss < float("inf"):
            wrong = f"no loss is predicted for {linear} at {bits} bits" if loss is None else f"{linear} loses {loss}"
            raise NumericError(wrong, "make the sensitivity pass again, in float32")
        return loss

    @staticmethod
    def even(linears: tuple[LinearPlan, ...]) -> LossPredictions:
        """As if every weight mattered alike: an error of half the size costs a quarter."""
        losses = {linear.name: {bits: linear.weights * 4.0**-bits for bits in BITS} for linear in linears}
        return LossPredictions(losses, "every weight alike")


@dataclass(frozen=True)
class BitsTarget:
    """So many stored bits per weight of the linears."""

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
    """nbytes: of the linears, or of all weight files; choices: the bits to choose from; terms: where it comes from."""

    nbytes: int
    of: Literal["linears", "files"]
    choices: tuple[int, ...]
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
        """Of each linear."""
        return {name: FLOAT if grid is None else grid.bits for name, grid in self.grids.items()}

    def as_dict(self) -> JsonObject:
        return {"source": self.source, "predicted_kl": self.loss, "gap": self.gap, "bits": self.bits}

    def __str__(self) -> str:
        counts = sorted(Counter(self.bits.values()).items())
        chosen = ", ".join(f"{bits} bits for {count} linears" for bits, count in counts)
        return f"{chosen}; predicted KL divergence {self.loss:.3g}"


def choices(recipe: Recipe, linears: tuple[LinearPlan, ...]) -> tuple[int, ...]:
    """The bits that the format holds: those that the recipe names, or those of them that a runtime loads mixed.

    If it names none and no runtime loads several, all that the format holds.
    """
    named = recipe.allowed_bits or BITS
    held = tuple(bits for bits in named if any(_holds(recipe, linear, bits) for linear in linears))
    loaded = preflight.mixed_bits(recipe.format, recipe.symmetric)
    return held if recipe.allowed_bits or len(loaded) < 2 else tuple(bits for bits in held if bits in loaded)


def tried(recipe: Recipe, allowed: Sequence[int]) -> tuple[int, ...]:
    """Those of the bits at which rounding is tried out to predict all: if that takes long, the few at which each
    linear loses much in its own way."""
    counts = sorted(bits for bits in allowed if bits != FLOAT)
    feedback = METHODS[recipe.method].feedback
    return tuple(b for b in counts if not feedback or b <= max(MOST_TRIED, counts[0]))


def budget_of(
    checkpoint: Checkpoint, arch: Architecture, recipe: Recipe, linears: tuple[LinearPlan, ...], layout_of: LayoutOf
) -> tuple[Budget | None, list[PlanProblem]]:
    """The budget of a recipe that has one; or why it cannot be kept, with the numbers.

    Raises RecipeError for a card that is not known.
    """
    allowed, codec = choices(recipe, linears), CODECS[recipe.format]
    absent = sorted(set(recipe.allowed_bits) - set(allowed))
    if len(allowed) < 2 or absent:
        return None, [_unmixed(recipe, linears, allowed, absent)]
    weights = sum(linear.weights for linear in linears)
    if recipe.target_bpw is not None:
        target = BitsTarget(recipe.target_bpw)
        budget = Budget(int(round(recipe.target_bpw * weights / 8, 3)), "linears", allowed, target)
    elif recipe.target_size is not None:
        budget = Budget(recipe.target_size, "files", allowed, SizeTarget(recipe.target_size))
    else:
        budget, problems = _on_card(checkpoint, arch, recipe, allowed)
        if problems:
            return None, problems
    smallest = _smallest(linears, recipe, allowed)
    stored = sum(linear.stored(smallest[linear.name], codec) for linear in linears)
    least = stored if budget.of == "linears" else layout_of(smallest).nbytes
    if least <= budget.nbytes:
        return budget, []
    problem = _too_small(budget, recipe, least, weights)
    if recipe.fit_gpu is not None:
        held = what_fits(checkpoint, card(recipe.fit_gpu), recipe.context or 0)
        problem = replace(problem, hint=f"{problem.hint}; {held}")
    return None, [problem]


def decide(
    linears: tuple[LinearPlan, ...], recipe: Recipe, budget: Budget, layout_of: LayoutOf, predictions: LossPredictions
) -> Allocation:
    """The grids that lose the least within a budget.

    Raises NumericError if a prediction is missing, RecipeError if nothing would be quantized.
    """
    codec = CODECS[recipe.format]
    groups: dict[tuple[int, str], list[LinearPlan]] = {}
    for linear in linears:
        groups.setdefault((linear.layer, linear.stage), []).append(linear)
    bits = [tuple(b for b in budget.choices if all(_holds(recipe, x, b) for x in group)) for group in groups.values()]
    sized = [
        [sum(x.stored(_grid(recipe, b), codec) for x in group) for b in allowed]
        for group, allowed in zip(groups.values(), bits, strict=True)
    ]
    losses = [
        [sum(predictions.of(x.name, b) for x in group) for b in allowed]
        for group, allowed in zip(groups.values(), bits, strict=True)
    ]
    limit, least = budget.nbytes, sum(map(min, sized))
    if budget.of == "files":
        smallest = _smallest(linears, recipe, budget.choices)
        limit += least - layout_of(smallest).nbytes
    while True:  # headers of files change a little with the choice
        best = allocate.solve(losses, sized, max(limit, least))
        grids: dict[str, Grid | None] = {}
        for group, allowed, chosen in zip(groups.values(), bits, best.chosen, strict=True):
            grids |= dict.fromkeys((x.name for x in group), _grid(recipe, allowed[chosen]))
        over = layout_of(grids).nbytes - budget.nbytes if budget.of == "files" else 0
        if over <= 0 or best.nbytes == least:
            break
        limit = best.nbytes - over
    if not any(grids.values()):
        raise RecipeError("within this budget every linear stays in float", "ask for less, or leave out 16 bits")
    return Allocation({linear.name: grids[linear.name] for linear in linears}, best.loss, best.gap, predictions.source)


def _grid(recipe: Recipe, bits: int) -> Grid | None:
    return None if bits == FLOAT else replace(recipe.uniform, bits=bits)


def _holds(recipe: Recipe, linear: LinearPlan, bits: int, codec: Codec | None = None) -> bool:
    grid = _grid(recipe, bits)
    return grid is None or (codec or CODECS[recipe.format]).problem(LinearSpec.planned(linear.shape, grid)) is None


def _smallest(linears: tuple[LinearPlan, ...], recipe: Recipe, allowed: tuple[int, ...]) -> Grids:
    """The fewest bits that each linear may have."""
    held = {linear.name: [b for b in allowed if _holds(recipe, linear, b)] for linear in linears}
    return {name: _grid(recipe, min(bits)) for name, bits in held.items()}


def _on_card(
    checkpoint: Checkpoint, arch: Architecture, recipe: Recipe, allowed: tuple[int, ...]
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
    return Budget(usable(gpu) - runtime - cache, "files", allowed, terms), problems


def _unmixed(
    recipe: Recipe, linears: tuple[LinearPlan, ...], allowed: tuple[int, ...], absent: list[int]
) -> PlanProblem:
    """What to say if a format does not hold the bits to choose from."""
    named = recipe.allowed_bits or BITS
    wanted = named if absent else ()
    able = []
    for name, codec in CODECS.items():
        held = [b for b in named if any(_holds(replace(recipe, format=name), x, b, codec) for x in linears)]
        if len(held) > 1 and set(wanted) <= set(held):
            able.append(name)
    has = " and ".join(map(str, allowed)) or "none of these"
    if absent:
        message = f"{recipe.format} does not hold {' or '.join(map(str, absent))} bits here"
    elif recipe.allowed_bits:
        return PlanProblem(f"with {has} bits alone there is nothing to choose", "allow more, or use --bits")
    else:
        message = f"{recipe.format} holds {has} bits alone, so linears cannot differ in bits"
    return PlanProblem(message, f"use --format {' or '.join(able)}" if able else "allow other bits")


def _wider(recipe: Recipe, fewest: int) -> str:
    """What makes the weights smaller, of what is not chosen already."""
    formats = "" if recipe.format == "compressed-tensors" else ", or --format compressed-tensors"
    fewer = [f"fewer bits (--allowed-bits{formats})"] if fewest > min(BITS) else []
    groups = ["larger groups"] if recipe.group_size != -1 else []
    return f"use {', '.join([*fewer, *groups]) or 'a smaller model'}"


def _too_small(budget: Budget, recipe: Recipe, least: int, weights: int) -> PlanProblem:
    """What to say if even the fewest bits are too many."""
    fewest = min(budget.choices)
    wider = _wider(recipe, fewest)
    if recipe.target_bpw is not None:
        message = (
            f"{recipe.target_bpw:g} bits a weight are too few: {fewest} bits everywhere take {8 * least / weights:.3f}"
        )
        return PlanProblem(message, f"{wider}, or a higher --target-bpw")
    if recipe.target_size is not None:
        message = f"{bytes_text(budget.nbytes)} are too few: with {fewest} bits everywhere the weight files take "
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
        f"{bytes_text(max(0, budget.nbytes))}; with {fewest} bits everywhere the weight files take {bytes_text(least)}"
    )
    shorter = f", or --context {room} at most" if room > 0 else ""
    return PlanProblem(message, f"{wider}, a larger card{shorter}")

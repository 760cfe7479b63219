"""Which variant of a model to take on a card: the most precise that holds the load, or what comes nearest to it.

Capacities are those of the memory model, so they are the same that the rows of fit show. It does not know how fast a
card is, nor what was measured on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from r1quant.checkpoint.safetensors import Checkpoint
from r1quant.checkpoint.tensorfile import TensorSpec
from r1quant.core.formatting import tokens_text
from r1quant.core.json import JsonObject
from r1quant.hardware import roofline
from r1quant.hardware.cards import Card, cards
from r1quant.hardware.inventory import Inventory, of_headers
from r1quant.hardware.roofline import USUAL, Efficiency, Modelled, Sizes
from r1quant.planning.variants import FormatVariant, VariantWeights, usual
from r1quant.recipe import FLOAT

PROMPT_TOKENS = 512  # of a load, the rest is answer
LEAST_BITS = 4  # of weights that are recommended unless others are asked for
ROUGH = ("gguf-q4_0",)  # as large as a better one of the same bits
SMALL_CACHE = 8  # bits of a number in the cache if 16 are too many
SHORTEST = 1024  # tokens that are worth a recommendation
SERVERS = ("data-centre", "workstation")  # kinds of cards that serve safetensors rather than GGUF


@dataclass(frozen=True)
class Load:
    """What is asked of a model.

    context  tokens of each text, prompt and answer
    batch    texts at the same time
    kv_bits  of a number in the cache
    count    cards of one kind that share the model
    """

    context: int
    batch: int = 1
    kv_bits: int = FLOAT
    count: int = 1


def usual_efficiency(card: Card, backend: str) -> Efficiency:
    """What a runtime makes of a card of which nothing was measured."""
    return USUAL


@dataclass(frozen=True)
class Capacities:
    """What each variant of one model would do at one load on any card.

    weights     of each variant
    positions   the longest text that the model was made for; None if its config does not say
    efficiency  what a runtime makes of a card, by the card and the runtime's name
    """

    model: Inventory
    weights: Mapping[FormatVariant, VariantWeights]
    load: Load
    positions: int | None = None
    efficiency: Callable[[Card, str], Efficiency] = usual_efficiency
    _sizes: dict[tuple[str, int], Sizes] = field(default_factory=dict, repr=False, compare=False)

    def sizes(self, variant: FormatVariant, kv_bits: int | None = None) -> Sizes:
        bits = self.load.kv_bits if kv_bits is None else kv_bits
        if (variant.label, bits) not in self._sizes:
            weights = self.weights[variant]
            self._sizes[variant.label, bits] = roofline.sized(
                self.model, weights.total, weights.total - weights.embedding, bits, weights.experts
            )
        return self._sizes[variant.label, bits]

    def modelled(
        self, variant: FormatVariant, card: Card, count: int | None = None, kv_bits: int | None = None
    ) -> Modelled:
        """A variant on a card, or on `count` of them. Raises RecipeError for kv_bits that no runtime has."""
        load = self.load
        prompt = min(PROMPT_TOKENS, max(1, load.context // 2))
        return roofline.model(
            self.sizes(variant, kv_bits),
            card,
            prompt,
            load.context - prompt,
            load.batch,
            gpus=load.count if count is None else count,
            efficiency=self.efficiency(card, variant.backend),
        )

    def longest(self, modelled: Modelled) -> int:
        """The most tokens that each text may have: of memory, and of what the model was made for."""
        return modelled.max_context if self.positions is None else min(modelled.max_context, self.positions)


@dataclass(frozen=True)
class Choice:
    """A variant with a cache of some bits, and the most tokens that each text may have then."""

    format: str
    title: str
    kv_bits: int
    max_context: int


@dataclass(frozen=True)
class Needed:
    """The smallest card that holds a variant at the load as it was asked for."""

    gpu: str
    memory_bytes: int
    format: str
    title: str


@dataclass(frozen=True)
class Recommendation:
    """What to take on a card.

    choice        None if not even a short text fits
    holds         whether the choice holds the load
    alternatives  with the cache that was asked for, if the choice does not hold the load with it
    needed        None if the choice holds the load as it was asked for, or no card does
    """

    gpu: str
    load: Load
    choice: Choice | None
    holds: bool
    alternatives: tuple[Choice, ...] = ()
    needed: Needed | None = None

    @property
    def text(self) -> str:
        """In one sentence."""
        cards = "" if self.load.count == 1 else f"{self.load.count} x "
        parts = [f"on {cards}{self.gpu}: {self._choice()}"]
        if self.alternatives:
            first, *others = ((one.title, tokens_text(one.max_context)) for one in self.alternatives)
            held = ", ".join([" holds ".join(first), *map(" ".join, others)])
            parts.append(f"with a {self.load.kv_bits}-bit cache {held}")
        if self.needed is not None:
            same = self.choice is not None and self.choice.title == self.needed.title
            what = "" if same else f" of {self.needed.title}"
            asked = f"{tokens_text(self.load.context)} tokens" + (f" x {self.load.batch}" * (self.load.batch > 1))
            such = f"{cards}{self.needed.memory_bytes / 2**30:.3g} GB, such as {cards}{self.needed.gpu}"
            parts.append(f"to hold {asked}{what} at {self.load.kv_bits} bits: {such}")
        return "; ".join(parts)

    def _choice(self) -> str:
        if self.choice is None:
            return "nothing fits"
        each = " for each text" if self.load.batch > 1 else ""
        small = f" with an {self.choice.kv_bits}-bit cache" if self.choice.kv_bits != self.load.kv_bits else ""
        return f"{self.choice.title}{small}, {tokens_text(self.choice.max_context)} tokens{each}"

    def as_dict(self) -> JsonObject:
        return {
            "gpu": self.gpu,
            "choice": None if self.choice is None else asdict(self.choice),
            "holds": self.holds,
            "alternatives": [asdict(choice) for choice in self.alternatives],
            "needed": None if self.needed is None else asdict(self.needed),
            "text": self.text,
        }


def candidates(shown: Sequence[FormatVariant], formats_named: bool, bits_named: bool) -> list[FormatVariant]:
    """The variants that may be recommended: of each format and bits the first, of 4 bits or more unless the user has
    named the bits, and of ONNX only if the user has named formats."""
    first = list({(v.format, v.bits, v.kind): v for v in reversed(shown)}.values())[::-1]
    able = first if bits_named else [v for v in first if v.bits >= LEAST_BITS] or first
    return able if formats_named else [v for v in able if v.format != "onnx" and v.label not in ROUGH] or able


def recommend(
    capacities: Capacities, variants: Sequence[FormatVariant], card: Card, table: Iterable[Card]
) -> Recommendation:
    """For one card. table: the cards of which one may be needed instead."""
    load, ranked = capacities.load, _ranked(variants, card)

    def choice(variant: FormatVariant, kv_bits: int) -> Choice:
        modelled = capacities.modelled(variant, card, kv_bits=kv_bits)
        return Choice(variant.label, variant.title, kv_bits, capacities.longest(modelled))

    for kv_bits in dict.fromkeys((load.kv_bits, min(load.kv_bits, SMALL_CACHE))):
        choices = [choice(variant, kv_bits) for variant in ranked]
        best = next((one for one in choices if one.max_context >= load.context), None)
        if best is not None:
            break
    holds = best is not None
    longest = max(choices, key=lambda one: one.max_context, default=None)
    chosen = best or (longest if longest is not None and longest.max_context >= SHORTEST else None)
    if chosen is not None and holds and chosen.kv_bits == load.kv_bits:
        return Recommendation(card.name, load, chosen, True)
    variant = next((v for v in ranked if chosen is not None and v.label == chosen.format), None)
    others = [v for v in ranked if variant is not None and _family(v) != _family(variant) and v.bits <= variant.bits]
    alternatives = [choice(v, load.kv_bits) for v in (variant, *others[:1]) if v is not None]
    if chosen is not None and chosen.kv_bits == load.kv_bits:
        alternatives = alternatives[1:]
    needed = _needed(capacities, variant or min(ranked, key=lambda v: capacities.weights[v].total), card, table)
    return Recommendation(card.name, load, chosen, holds, tuple(alternatives), needed)


def what_fits(checkpoint: Checkpoint, card: Card, context: int) -> str:
    """The recommendation for a checkpoint on a card, in a sentence, if texts of so many tokens are asked for."""
    specs = [TensorSpec(info.name, info.dtype, info.shape) for info in checkpoint.tensors.values()]
    model = of_headers(checkpoint.config, specs)
    weights, positions = usual(model), checkpoint.config.get("max_position_embeddings")
    capacities = Capacities(model, weights, Load(context), positions if isinstance(positions, int) else None)
    return recommend(capacities, candidates(list(weights), False, False), card, cards().values()).text


def _family(variant: FormatVariant) -> str:
    """What is run by the same kind of runtime."""
    return variant.format if variant.format in ("gguf", "onnx") else "safetensors"


def _ranked(variants: Sequence[FormatVariant], card: Card) -> list[FormatVariant]:
    """The most bits first; of the same bits what the kind of card is usually run with, then the usual order."""
    usual = "safetensors" if card.kind in SERVERS else "gguf"
    return sorted(variants, key=lambda variant: (-variant.bits, _family(variant) != usual))


def _needed(capacities: Capacities, variant: FormatVariant, card: Card, table: Iterable[Card]) -> Needed | None:
    """The smallest card of the same kind, else of any, that holds the variant at the load as it is."""
    smallest = sorted(table, key=lambda one: (one.kind != card.kind, one.memory_bytes, one.bandwidth))
    enough = (one for one in smallest if capacities.modelled(variant, one).fits)
    found = next(enough, None)
    return None if found is None else Needed(found.name, found.memory_bytes, variant.label, variant.title)

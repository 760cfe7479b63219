"""Which type each tensor has in a mixture of llama.cpp (llama-quant.cpp, made with an importance matrix).

A mixture is a base type with exceptions by the role of a matrix and, for some, by the layer: values, the second linear
of the MLP and the output get more bits. The name of a block type that is no mixture stands for that type everywhere in
the layers. It does not know files or names of tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from r1quant.core.blocktypes import BLOCK_TYPES, SUPER_BLOCK

BLOCK = 32
FLOAT_BYTES: Mapping[str, int] = {"F16": 64, "BF16": 64, "F32": 128}  # of 32 weights
# The type that a matrix gets instead if its columns are not a multiple of 256. IQ types become IQ4_NL.
FALLBACK: Mapping[str, str] = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


@dataclass(frozen=True)
class Place:
    """Where a matrix is: in which of so many layers; grouped, the query heads that share keys and values."""

    layer: int
    layers: int
    grouped: int

    def first(self, share: int) -> bool:
        """Whether the layer is in the first part of so many."""
        return self.layer < self.layers // share

    @property
    def more(self) -> bool:
        """The first and last eighth of the layers, and every third between them."""
        return self.first(8) or self.layer >= 7 * self.layers // 8 or (self.layer - self.layers // 8) % 3 == 2

    @property
    def inner(self) -> bool:
        """Neither the first eighth of the layers nor the last."""
        return self.layers // 8 <= self.layer < 7 * self.layers // 8


Rule = str | Callable[[Place], str]  # a type, or one for each place


@dataclass(frozen=True)
class Mixture:
    """base: the type of all that has no rule; rules: by role."""

    base: str
    rules: Mapping[str, Rule] = field(default_factory=dict)

    def type_of(self, role: str, place: Place) -> str:
        rule = self.rules.get(role, HEAD if role == "head" else self.base)
        return rule if isinstance(rule, str) else rule(place)


HEAD = "Q6_K"


def _grouped(many: str, few: str) -> Rule:
    """By whether at least four query heads share keys and values, which then are small."""
    return lambda place: many if place.grouped >= 4 else few


def _first(share: int, these: str, others: str) -> Rule:
    return lambda place: these if place.first(share) else others


def _more(these: str, others: str) -> Rule:
    return lambda place: these if place.more else others


def _until(layer: int, these: str, others: str) -> Rule:
    return lambda place: these if place.layer < layer else others


def _inner(these: str, others: str) -> Rule:
    return lambda place: these if place.inner else others


def _smallest(base: str, table: str, rest: str) -> Mixture:
    """Of the types below 3 bits: value and down have more, as have both tables."""
    rules = {"head": "Q5_K", "embedding": table, "value": _grouped("Q4_K", rest), "down": _first(8, rest, base)}
    return Mixture(base, rules | ({"out": "IQ2_XXS"} if base.startswith("IQ1") else {}))


def _iq2(base: str) -> Mixture:
    return Mixture(base, {**_smallest(base, "IQ3_S", "IQ3_S").rules, "out": "IQ3_S"})


_IQ3_XS: Mapping[str, Rule] = {
    "value": _grouped("Q4_K", "IQ3_S"), "query": "IQ3_XXS", "key": "IQ3_XXS", "linear": _inner("IQ3_XXS", "IQ3_S"),
}  # fmt: skip
_IQ3_XXS: Mapping[str, Rule] = {
    "head": "Q5_K", "embedding": "IQ3_S", "value": _grouped("Q4_K", "IQ3_XXS"), "query": "IQ2_S", "key": "IQ2_S",
    "out": "IQ3_S",
}  # fmt: skip
MIXTURES: Mapping[str, Mixture] = {
    "Q4_0": Mixture("Q4_0", {"down": _first(8, "Q4_1", "Q4_0")}),
    "Q4_1": Mixture("Q4_1"),
    "Q5_0": Mixture("Q5_0", {"down": _first(8, "Q5_1", "Q5_0")}),
    "Q5_1": Mixture("Q5_1"),
    "Q8_0": Mixture("Q8_0", {"head": "Q8_0"}),
    "Q2_K": Mixture("Q2_K", {"value": _grouped("Q4_K", "Q3_K"), "out": "Q3_K", "down": "Q3_K"}),
    "Q2_K_S": Mixture("Q2_K", {"value": _grouped("Q4_K", "Q2_K"), "down": _first(8, "Q4_K", "Q2_K")}),
    "Q3_K_S": Mixture("Q3_K"),
    "Q3_K_M": Mixture("Q3_K", {"value": _until(2, "Q5_K", "Q4_K"), "out": "Q4_K", "down": _first(16, "Q5_K", "Q4_K")}),
    "Q3_K_L": Mixture("Q3_K", {"value": "Q5_K", "out": "Q5_K", "down": "Q5_K"}),
    "Q4_K_S": Mixture("Q4_K", {"value": _until(4, "Q5_K", "Q4_K"), "down": _first(8, "Q5_K", "Q4_K")}),
    "Q4_K_M": Mixture("Q4_K", {"value": _more("Q6_K", "Q4_K"), "down": _more("Q6_K", "Q4_K")}),
    "Q5_K_S": Mixture("Q5_K"),
    "Q5_K_M": Mixture("Q5_K", {"value": _more("Q6_K", "Q5_K"), "down": _more("Q6_K", "Q5_K")}),
    "Q6_K": Mixture("Q6_K"),
    "IQ4_NL": Mixture("IQ4_NL", {"value": _grouped("Q5_K", "IQ4_NL")}),
    "IQ4_XS": Mixture("IQ4_XS", {"value": _grouped("Q5_K", "IQ4_XS")}),
    "IQ3_XXS": Mixture("IQ3_XXS", _IQ3_XXS),
    "IQ3_XS": Mixture("IQ3_S", _IQ3_XS),
    "IQ3_S": Mixture("IQ3_S", {"value": _grouped("Q4_K", "IQ3_S")}),
    "IQ3_M": Mixture("IQ3_S", {"value": "Q4_K", "out": "Q4_K", "down": _first(8, "Q4_K", "IQ3_S")}),
    "IQ2_XXS": _smallest("IQ2_XXS", "Q2_K", "Q2_K"),
    "IQ2_XS": _smallest("IQ2_XS", "Q2_K", "Q2_K"),
    "IQ2_S": _iq2("IQ2_XS"),
    "IQ2_M": _iq2("IQ2_S"),
    "IQ1_S": _smallest("IQ1_S", "Q2_K", "Q2_K"),
    "IQ1_M": _smallest("IQ1_M", "Q2_K", "Q2_K"),
}


def kind_of(mixture: str, role: str, layer: int, layers: int, grouped: int, columns: int) -> str:
    """The type of a matrix.

    mixture  a key of MIXTURES, or the name of a block type
    role     embedding, head (also of an embedding that is the head at the same time), query, key, value, out, down, or
             linear for gate and up
    grouped  query heads that share keys and values
    columns  in a row
    """
    of = MIXTURES.get(mixture) or Mixture(mixture)
    kind = of.type_of(role, Place(layer, layers, grouped))
    if BLOCK_TYPES[kind].block != SUPER_BLOCK or columns % SUPER_BLOCK == 0:
        return kind
    return "Q8_0" if role == "head" else FALLBACK.get(kind, "IQ4_NL")


def nbytes(kind: str, rows: int, columns: int) -> int:
    """The bytes of a matrix; a last block that is not full counts whole."""
    if kind in FLOAT_BYTES:
        return rows * math.ceil(columns / BLOCK) * FLOAT_BYTES[kind]
    of = BLOCK_TYPES[kind]
    return rows * math.ceil(columns / of.block) * of.nbytes

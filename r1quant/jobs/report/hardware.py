"""What the hardware room says of the variants of a report: the one place where the two meet.

It reads no file: a model is known by its config and by how it was quantized, both out of records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from r1quant.arch.tables import Architecture, architecture_of, is_tied, size
from r1quant.checkpoint.artifact import LinearSpec
from r1quant.core.blocktypes import BlockGrid
from r1quant.core.json import Config
from r1quant.errors import R1QuantError
from r1quant.hardware import roofline
from r1quant.hardware.cards import Card, card, cards
from r1quant.planning.linears import EMBEDDING, HEAD, LinearPlan
from r1quant.planning.types import typed
from r1quant.recipe import DEFAULT_TYPE, FLOAT, Recipe
from r1quant.records.fields import Settings
from r1quant.records.quantization import Quantization
from r1quant.reporting.hardware import CardFit, HardwareSummary, MemoryCurve, MemoryModel

FORTY = "A100 40GB"
MOST_LAYERS = 10_000  # a config that names more is of no model: nothing is built from it
CONTEXT, STEPS = 8192, 32  # tokens at which cards are compared; points of the curve of memory
BASELINE = "16-bit baseline"
SHOWN = (
    "RTX 3060 12GB", "RTX 4060", "RTX 4060 Laptop", "RTX 4090", "RTX 5090", "M4 16GB", "M4 Max 128GB",
    "Jetson AGX Orin 64GB", "CPU desktop DDR5 64GB", "T4", "L4", "A10", "L40S", "A100 40GB", "A100 80GB", "H100 SXM",
    "H200",
)  # fmt: skip


def hardware(config: Config, quantizations: Mapping[str, Quantization]) -> HardwareSummary | None:
    """config: of the float model; quantizations: the record of each variant, by name.

    None if the config or the records do not say enough, or are not of a model that is known.
    """
    try:
        arch = architecture_of(config)
        if size(config, "num_hidden_layers") > MOST_LAYERS:
            return None
        sizes = {BASELINE: roofline.sizes(config, arch)}
        for name, record in quantizations.items():
            sizes[name] = roofline.sizes(config, arch, _linear_specs(config, record))
        longest = config.get("max_position_embeddings")
        longest = longest if isinstance(longest, int) and 0 < longest <= 1 << 24 else CONTEXT
        context = min(CONTEXT, longest)
        rows = [_fit(name, of, known, context, longest) for known in _shown() for name, of in sizes.items()]
        weights = {name: of.weights_bytes for name, of in sizes.items()}
        return HardwareSummary(weights, _memory(sizes, longest), context, tuple(sizes), tuple(rows))
    except (R1QuantError, ArithmeticError, KeyError, TypeError, ValueError):
        return None


def _linear_specs(config: Config, record: Quantization) -> dict[str, LinearSpec]:
    """Of each quantized matrix."""
    recipe, arch = _recipe(record.recipe), architecture_of(config)
    if recipe.typed:
        return _blocks(config, arch, recipe, record)
    bits = record.allocation.bits if record.allocation else {}
    if record.recipe.get("bits") is None and not bits:
        raise KeyError("bits")
    specs = {}
    for matrix in _matrices(config, arch):
        width = bits.get(matrix.name, recipe.table_bits.get(matrix.stage, recipe.bits))
        if width != FLOAT:
            specs[matrix.name] = LinearSpec.planned(matrix.shape, replace(recipe.uniform, bits=width))
    return specs


def _blocks(config: Config, arch: Architecture, recipe: Recipe, record: Quantization) -> dict[str, LinearSpec]:
    """Of linears and tables with types of GGUF."""
    matrices = _matrices(config, arch)
    types = record.allocation.types if record.allocation else None
    if types is None:
        grids = typed(config, arch, matrices, recipe.mixture or DEFAULT_TYPE)
    else:
        grids = {name: BlockGrid(type) for name, type in types.items()}
    chosen = ((matrix, grids.get(matrix.name)) for matrix in matrices)
    return {matrix.name: LinearSpec.planned(matrix.shape, grid) for matrix, grid in chosen if grid is not None}


def _matrices(config: Config, arch: Architecture) -> list[LinearPlan]:
    """All that can be quantized, as the config implies them."""
    shapes, layers, found = arch.shapes(config), size(config, "num_hidden_layers"), list[LinearPlan]()

    def add(name: str, layer: int, stage: str) -> None:
        (rows, columns), plain = shapes[name], name.removesuffix(".weight")
        found.append(LinearPlan(plain, (rows, columns), layer, stage, "BF16", 2 * rows * columns))

    for layer in range(layers):
        for stage in arch.layer.stages:
            for linear in stage.linears:
                add(f"{arch.layer_prefix(layer)}{linear}.weight", layer, stage.name)
    add(arch.tensors.embedding, layers, EMBEDDING)
    if not is_tied(config):
        add(arch.tensors.head, layers, HEAD)
    return found


def _recipe(options: Settings) -> Recipe:
    """An option without a value is decided by another.

    Raises KeyError, TypeError, ValueError or RecipeError if these are not the options of a recipe.
    """
    values: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    several: dict[str, Any] = {
        name: tuple(values[name]) for name in ("allowed_bits", "allowed_types") if name in values
    }
    return Recipe(**{**values, **several})


def _shown() -> list[Card]:
    known = cards()
    return [known[name] for name in SHOWN if name in known] or list(known.values())


def _memory(sizes: Mapping[str, roofline.Sizes], longest: int) -> MemoryModel:
    """What fills a card of 40 GB: of the baseline first, then of each variant."""
    known = card(FORTY)
    contexts = [2, *(longest * i // STEPS for i in range(1, STEPS + 1))]
    usable = round(known.memory_bytes * roofline.assumptions()["memory_share"])
    curves = tuple(_curve(name, of, known, contexts) for name, of in sizes.items())
    return MemoryModel(known.name, known.memory_bytes, usable, tuple(contexts), curves)


def _curve(name: str, of: roofline.Sizes, known: Card, contexts: Sequence[int]) -> MemoryCurve:
    modelled = [roofline.model(of, known, context - 1, 1) for context in contexts]
    return MemoryCurve(
        name=name,
        weights_bytes=of.weights_bytes,
        kv_bytes_per_token=of.kv_bytes,
        kv_bytes=tuple(one.kv_bytes for one in modelled),
        activations_bytes=tuple(one.activation_bytes for one in modelled),
        runtime_bytes=modelled[0].runtime_bytes,
        max_context=min(modelled[0].max_context, contexts[-1]),
    )


def _fit(name: str, of: roofline.Sizes, known: Card, context: int, longest: int) -> CardFit:
    new = max(1, context // 8)
    modelled = roofline.model(of, known, context - new, new)
    return CardFit(
        card=known.name,
        memory_bytes=known.memory_bytes,
        name=name,
        fits=modelled.fits,
        total_bytes=modelled.total_bytes,
        max_context=min(modelled.max_context, longest),
        decode_tokens_per_second=modelled.decode_tokens_per_second,
    )

"""What the hardware room says of the variants of a report, in plain numbers: the one place where the two meet.

It reads no file: a model is known by its config and by how it was quantized, both out of records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from r1quant.arch.tables import architecture_of, linears, size
from r1quant.checkpoint.artifact import LinearSpec
from r1quant.errors import R1QuantError
from r1quant.hardware import roofline
from r1quant.hardware.cards import Card, card, cards
from r1quant.recipe import FLOAT, Recipe
from r1quant.reporting import untrusted

FORTY = "A100 40GB"
MOST_LAYERS = 10_000  # a config that names more is of no model: nothing is built from it
CONTEXT, STEPS = 8192, 32  # tokens at which cards are compared; points of the curve of memory
BASELINE = "16-bit baseline"
SHOWN = (
    "RTX 3060 12GB", "RTX 4060", "RTX 4060 Laptop", "RTX 4090", "RTX 5090", "M4 16GB", "M4 Max 128GB",
    "Jetson AGX Orin 64GB", "CPU desktop DDR5 64GB", "T4", "L4", "A10", "L40S", "A100 40GB", "A100 80GB", "H100 SXM",
    "H200",
)  # fmt: skip


def hardware(config: Mapping[str, Any], made: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """config: of the float model; made: the record of quantization of each variant, by name.

    None where the config or the records do not say enough, or are not of a model that is known.
    """
    try:
        arch = architecture_of(config)
        if size(config, "num_hidden_layers") > MOST_LAYERS:
            return None
        sizes = {BASELINE: roofline.sizes(config, arch)}
        for name, record in made.items():
            sizes[name] = roofline.sizes(config, arch, _forms(config, record))
        longest = config.get("max_position_embeddings")
        longest = longest if isinstance(longest, int) and 0 < longest <= 1 << 24 else CONTEXT
        return {
            "weights_bytes": {name: of.weights_bytes for name, of in sizes.items()},
            "memory": _memory(sizes, longest),
            "context": min(CONTEXT, longest),
            "names": list(sizes),
            "rows": [
                _row(name, of, known, min(CONTEXT, longest), longest)
                for known in _shown()
                for name, of in sizes.items()
            ],
        }
    except (R1QuantError, ArithmeticError, KeyError, TypeError, ValueError):
        return None


def _forms(config: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, LinearSpec]:
    """The form of each quantized linear."""
    recipe = Recipe(**{**record["recipe"], "allowed_bits": tuple(record["recipe"]["allowed_bits"])})
    arch = architecture_of(config)
    shapes, bits = arch.shapes(config), untrusted.mapping(record, "allocation.bits")
    found = {}
    for name in linears(config, arch)[:-1]:
        width = bits.get(name, recipe.bits)
        if width != FLOAT:
            rows, columns = shapes[f"{name}.weight"]
            found[name] = LinearSpec.planned((rows, columns), replace(recipe.grid, bits=width))
    return found


def _shown() -> list[Card]:
    known = cards()
    return [known[name] for name in SHOWN if name in known] or list(known.values())


def _memory(sizes: Mapping[str, roofline.Sizes], longest: int) -> dict[str, Any]:
    """What fills a card of 40 GB: of the baseline first, then of each variant."""
    known = card(FORTY)
    contexts = [2, *(longest * i // STEPS for i in range(1, STEPS + 1))]
    return {
        "card": known.name,
        "memory_bytes": known.memory_bytes,
        "usable_bytes": round(known.memory_bytes * roofline.assumptions()["memory_share"]),
        "contexts": contexts,
        "sides": [_side(name, of, known, contexts) for name, of in sizes.items()],
    }


def _side(name: str, of: roofline.Sizes, known: Card, contexts: Sequence[int]) -> dict[str, Any]:
    found = [roofline.model(of, known, context - 1, 1) for context in contexts]
    active = [int(each.as_dict().get("activation_bytes", 0)) for each in found]
    return {
        "name": name,
        "weights_bytes": of.weights_bytes,
        "kv_bytes_per_token": of.kv_bytes,
        "kv_bytes": [each.kv_bytes for each in found],
        "activations_bytes": active,
        "runtime_bytes": found[0].total_bytes - found[0].weights_bytes - found[0].kv_bytes - active[0],
        "max_context": min(found[0].max_context, contexts[-1]),
    }


def _row(name: str, of: roofline.Sizes, known: Card, context: int, longest: int) -> dict[str, Any]:
    new = max(1, context // 8)
    found = roofline.model(of, known, context - new, new)
    return {
        "card": known.name,
        "memory_bytes": known.memory_bytes,
        "name": name,
        "fits": found.fits,
        "total_bytes": found.total_bytes,
        "max_context": min(found.max_context, longest),
        "decode_tokens_per_second": found.decode_tokens_per_second,
    }

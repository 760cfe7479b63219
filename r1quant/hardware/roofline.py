"""What a model would do on a card: bytes, whether it fits, tokens a second. A model of it, never a measurement.

A roofline: a step takes as long as the slower of two things, reading what it must read from the card's memory and
computing what it must compute, each at a stated share of what the card's maker promises (S. Williams et al.,
Roofline, CACM 52(4), 2009), and a fixed time for each layer's kernels to follow each other. It does not know what
kernels a runtime has: it takes quantized weights to be read at their stored size and multiplied in 16 bits. Pure: no
card and no weight is looked at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from r1quant.archs import Architecture, head_dim, linears, size
from r1quant.artifact import Form
from r1quant.errors import RecipeError
from r1quant.hardware.cards import Card

SOURCE = "modelled"
BANDWIDTH_SHARE = 0.75  # of the promised bandwidth, which streaming reads reach
COMPUTE_SHARE = 0.5  # of the promised operations, which large matrix products reach
MEMORY_SHARE = 0.92  # of the card's memory, which a runtime can fill: the rest is the driver's, and fragments
RUNTIME_BYTES = 1_000_000_000  # context of the driver, kernels, activations
LAYER_SECONDS = 20e-6  # of a step, for the launches of one layer, however small it is
FLOAT_BITS = 16
DTYPES = ("float16", "bfloat16")


@dataclass(frozen=True)
class Sizes:
    """What decides the speed of a model.

    weights_bytes       all that is loaded
    streamed_bytes      of these, what one step reads: all but an embedding that is no head at the same time
    layers              decoder layers
    layer_weights       numbers in the linears of all decoder layers
    head_weights        numbers in the head
    kv_bytes            of the cache, for one token of one text
    attention_width     layers x heads x columns of a head: what a query is multiplied with, for each earlier token
    """

    weights_bytes: int
    streamed_bytes: int
    layers: int
    layer_weights: int
    head_weights: int
    kv_bytes: int
    attention_width: int


@dataclass(frozen=True)
class Modelled:
    """One model on one card at one load, as the roofline has it.

    prefill_tokens_per_second  of all texts together, until each has its first token
    decode_tokens_per_second   of all texts together, after that, on average
    ttft_seconds               when each text has its first token
    total_bytes                weights, cache at its fullest, runtime
    max_context                the most tokens that each text may have; 0 where not even the weights fit
    """

    card: str
    dtype: str
    weights_bytes: int
    kv_bytes: int
    total_bytes: int
    fits: bool
    max_context: int
    ttft_seconds: float
    prefill_tokens_per_second: float
    decode_tokens_per_second: float

    def as_dict(self) -> dict[str, Any]:
        return {"source": SOURCE, **vars(self)}


def stored_bits(form: Form) -> float:
    """Bits that a quantized weight takes, with its share of a 16-bit scale and of a zero point where there is one."""
    zero = 0 if form.symmetric else form.bits
    return form.bits + (FLOAT_BITS + zero) * form.groups / form.shape[1]


def sizes(
    config: Mapping[str, Any], arch: Architecture, forms: Mapping[str, Form] | None = None, kv_bits: float = FLOAT_BITS
) -> Sizes:
    """The sizes of a model from its config.

    forms    the quantized linears, by name without `.weight`; every other number takes FLOAT_BITS
    kv_bits  of a number in the cache

    Raises CheckpointError where the config lacks a size.
    """
    forms = forms or {}
    tied = bool(config.get("tie_word_embeddings"))
    shapes = {
        name: shape
        for name, shape in arch.shapes(config).items()
        if not (name.endswith(".bias") and arch.layer.biases == "optional")
    }
    if tied:
        shapes.pop(arch.tensors.head)
    count = {name: math.prod(shape) for name, shape in shapes.items()}
    bits = {name: stored_bits(form) for name, form in forms.items()}
    stored = {name: n * bits.get(name.removesuffix(".weight"), FLOAT_BITS) / 8 for name, n in count.items()}
    weights = sum(stored.values())
    unread = 0 if tied else stored[arch.tensors.embedding]
    layers, heads = size(config, "num_hidden_layers"), size(config, "num_attention_heads")
    kv_heads, head = size(config, "num_key_value_heads", heads), head_dim(config)
    in_layers = sum(count[f"{name}.weight"] for name in linears(config, arch)[:-1])
    return Sizes(
        weights_bytes=round(weights),
        streamed_bytes=round(weights - unread),
        layers=layers,
        layer_weights=in_layers,
        head_weights=size(config, "vocab_size") * size(config, "hidden_size"),
        kv_bytes=round(2 * layers * kv_heads * head * kv_bits / 8),
        attention_width=layers * heads * head,
    )


def model(
    of: Sizes, card: Card, prompt_tokens: int, new_tokens: int, batch: int = 1, dtype: str = "float16"
) -> Modelled:
    """`batch` texts of prompt_tokens each, answered by new_tokens each, all at the same time.

    Decoding is taken at the context in the middle of the answer. Raises RecipeError for a precision that the card
    lacks.
    """
    flops = _flops(card, dtype) * COMPUTE_SHARE
    bandwidth = card.bandwidth * BANDWIDTH_SHARE
    reading, launching = of.streamed_bytes / bandwidth, of.layers * LAYER_SECONDS

    causal = 2 * of.attention_width * prompt_tokens  # scores and values, over half of the prompt on average
    prefill = batch * (prompt_tokens * (2 * of.layer_weights + causal) + 2 * of.head_weights)
    ttft = max(reading, prefill / flops) + launching

    context = prompt_tokens + new_tokens / 2
    cache = batch * context * of.kv_bytes / bandwidth
    work = batch * (2 * (of.layer_weights + of.head_weights) + 4 * of.attention_width * context)
    step = max(reading + cache, work / flops) + launching

    kv = batch * (prompt_tokens + new_tokens) * of.kv_bytes
    total = of.weights_bytes + kv + RUNTIME_BYTES
    usable = round(card.memory_bytes * MEMORY_SHARE)
    left = usable - of.weights_bytes - RUNTIME_BYTES
    return Modelled(
        card=card.name,
        dtype=dtype,
        weights_bytes=of.weights_bytes,
        kv_bytes=kv,
        total_bytes=total,
        fits=total <= usable,
        max_context=max(0, left // (batch * of.kv_bytes)),
        ttft_seconds=ttft,
        prefill_tokens_per_second=batch * prompt_tokens / ttft,
        decode_tokens_per_second=batch / step,
    )


def assumptions() -> dict[str, float]:
    """The shares that the model takes, for a record."""
    return {
        "bandwidth_share": BANDWIDTH_SHARE,
        "compute_share": COMPUTE_SHARE,
        "layer_seconds": LAYER_SECONDS,
        "memory_share": MEMORY_SHARE,
        "runtime_bytes": RUNTIME_BYTES,
    }


def _flops(card: Card, dtype: str) -> float:
    if dtype not in DTYPES:
        raise RecipeError(f"dtype {dtype!r} is not supported", f"choose from {', '.join(DTYPES)}")
    found = card.fp16_flops if dtype == "float16" else card.bf16_flops
    if not found:
        raise RecipeError(f"the {card.name} has no bfloat16", "use float16")
    return found

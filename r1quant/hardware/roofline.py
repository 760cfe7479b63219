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

from r1quant.arch.kvcache import Cache, cache_of
from r1quant.arch.tables import Architecture, head_dim, size
from r1quant.checkpoint.artifact import LinearSpec
from r1quant.core.blocktypes import BLOCK_TYPES
from r1quant.core.json import Config
from r1quant.errors import RecipeError
from r1quant.hardware import memory
from r1quant.hardware.cards import Card
from r1quant.hardware.inventory import Inventory, of_config
from r1quant.hardware.memory import NO_ACTIVATIONS, Activations

SOURCE = "modelled"
BANDWIDTH_SHARE = 0.75  # of the promised bandwidth, which streaming reads reach
COMPUTE_SHARE = 0.5  # of the promised operations, which large matrix products reach
LAYER_SECONDS = 20e-6  # of a step, for the launches of one layer, however small it is
EXCHANGE_SECONDS = 10e-6  # of an exchange between cards, however little it carries; there are two a layer
FLOAT_BITS = 16
DTYPES = ("float16", "bfloat16")


@dataclass(frozen=True)
class Efficiency:
    """What a runtime makes of a card.

    runtime_bytes  of the runtime itself; None takes what is usual for the kind of card
    """

    bandwidth_share: float = BANDWIDTH_SHARE
    compute_share: float = COMPUTE_SHARE
    layer_seconds: float = LAYER_SECONDS
    runtime_bytes: int | None = None


USUAL = Efficiency()


@dataclass(frozen=True)
class Sizes:
    """What decides the speed of a model.

    weights_bytes       all that is loaded
    streamed_bytes      of these, what one step reads: all but an embedding that is no head at the same time
    layers              decoder layers
    layer_weights       numbers in the linears of all decoder layers that one token passes
    head_weights        numbers in the head
    cache               what attention keeps of each token
    attention_width     layers x heads x columns of a head: what a query is multiplied with, for each earlier token
    number_bytes        of a number in the cache
    activations         beside weights and cache
    hidden              columns between layers, which cards exchange
    expert_bytes        of the streamed bytes, those of routed experts
    experts             how many there are in a layer, and how many of them a token passes
    """

    weights_bytes: int
    streamed_bytes: int
    layers: int
    layer_weights: int
    head_weights: int
    cache: Cache
    attention_width: int
    number_bytes: float = 2.0
    activations: Activations = NO_ACTIVATIONS
    hidden: int = 0
    expert_bytes: int = 0
    experts: tuple[int, int] = (1, 1)

    @property
    def kv_bytes(self) -> int:
        """Of the cache, for one token of one text that every layer sees."""
        return round(self.cache.numbers(1) * self.number_bytes)

    def cached(self, tokens: float, gpus: int = 1) -> float:
        """Bytes of the cache of one text, on all cards together: what cannot be divided lies on each."""
        copies = gpus if self.cache.shared else max(1.0, gpus / self.cache.heads)
        return self.cache.numbers(tokens) * self.number_bytes * copies

    def read(self, batch: int) -> float:
        """Bytes of weights that a step of `batch` texts reads: of experts, those that any text passes."""
        count, taken = self.experts
        return self.streamed_bytes - self.expert_bytes * (1 - taken / count) ** batch


@dataclass(frozen=True)
class Modelled:
    """One model on one card, or several, at one load, as the roofline has it.

    prefill_tokens_per_second  of all texts together, until each has its first token
    decode_tokens_per_second   of all texts together, after that, on average
    ttft_seconds               when each text has its first token
    total_bytes                weights, cache at its fullest, activations, runtime; on all cards together
    max_context                the most tokens that each text may have; 0 if not even the weights fit
    max_batch                  the most texts of this length at the same time
    """

    card: str
    dtype: str
    gpus: int
    weights_bytes: int
    kv_bytes: int
    activation_bytes: int
    runtime_bytes: int
    total_bytes: int
    usable_bytes: int
    fits: bool
    max_context: int
    max_batch: int
    ttft_seconds: float
    prefill_tokens_per_second: float
    decode_tokens_per_second: float


def stored_bits(form: LinearSpec) -> float:
    """Bits that a quantized weight takes, with its share of a 16-bit scale and of a zero point if there is one."""
    if form.type is not None:
        return BLOCK_TYPES[form.type].bits_per_weight
    zero = 0 if form.symmetric else form.bits
    return form.bits + (FLOAT_BITS + zero) * form.groups / form.shape[1]


def sizes(
    config: Config,
    arch: Architecture,
    linear_specs: Mapping[str, LinearSpec] | None = None,
    kv_bits: int = FLOAT_BITS,
) -> Sizes:
    """The sizes of a model from its config.

    forms    the quantized linears, by name without `.weight`; every other number takes FLOAT_BITS
    kv_bits  of a number in the cache

    Raises CheckpointError if the config lacks a size.
    """
    model, saved = of_config(config), 0.0
    unread = 0.0 if model.tied else float(sum(p.numbers for p in model.parts if p.role == "embedding"))
    unread *= FLOAT_BITS / 8
    for name, form in (linear_specs or {}).items():
        less = math.prod(form.shape) * (FLOAT_BITS - stored_bits(form)) / 8
        saved += less
        unread -= less if unread and f"{name}.weight" == arch.tensors.embedding else 0
    weights = round(model.parameters * FLOAT_BITS / 8 - saved)
    return sized(model, weights, round(weights - unread), kv_bits)


def sized(
    model: Inventory, weights_bytes: int, streamed_bytes: int, kv_bits: int = FLOAT_BITS, expert_bytes: int = 0
) -> Sizes:
    """The sizes of a model whose weights take so many bytes. Raises CheckpointError if the config lacks a size."""
    config = model.config
    layers, heads = size(config, "num_hidden_layers"), size(config, "num_attention_heads")
    count, taken = model.experts
    inner = sum(p.numbers * (taken / count if p.expert else 1) for p in model.parts if p.linear)
    return Sizes(
        weights_bytes,
        streamed_bytes,
        layers,
        round(inner),
        size(config, "vocab_size") * size(config, "hidden_size"),
        cache_of(config),
        layers * heads * head_dim(config),
        memory.number_bytes(kv_bits),
        memory.activations_of(config),
        size(config, "hidden_size"),
        expert_bytes,
        model.experts,
    )


def model(
    of: Sizes,
    card: Card,
    prompt_tokens: int,
    new_tokens: int,
    batch: int = 1,
    dtype: str = "float16",
    gpus: int = 1,
    efficiency: Efficiency = USUAL,
) -> Modelled:
    """`batch` texts of prompt_tokens each, answered by new_tokens each, all at the same time.

    Decoding is taken at the context in the middle of the answer. Several cards hold a part of every layer each (tensor
    parallelism). Raises RecipeError for a precision that the card lacks.
    """
    ttft, step = seconds(of, card, prompt_tokens, new_tokens, batch, dtype, gpus, efficiency)
    runtime = memory.runtime_bytes(card) if efficiency.runtime_bytes is None else efficiency.runtime_bytes
    runtime *= gpus
    context = prompt_tokens + new_tokens
    kv = round(batch * of.cached(context, gpus))
    active = gpus * of.activations.nbytes(context, batch)
    total = of.weights_bytes + kv + active + runtime
    usable = memory.usable(card) * gpus
    room = usable - of.weights_bytes - runtime
    return Modelled(
        card=card.name,
        dtype=dtype,
        gpus=gpus,
        weights_bytes=of.weights_bytes,
        kv_bytes=kv,
        activation_bytes=active,
        runtime_bytes=runtime,
        total_bytes=total,
        usable_bytes=usable,
        fits=total <= usable,
        max_context=_longest(of, room, batch, gpus),
        max_batch=_most(of, room, context, gpus),
        ttft_seconds=ttft,
        prefill_tokens_per_second=batch * prompt_tokens / ttft,
        decode_tokens_per_second=batch / step,
    )


def seconds(
    of: Sizes,
    card: Card,
    prompt_tokens: int,
    new_tokens: int,
    batch: int = 1,
    dtype: str = "float16",
    gpus: int = 1,
    efficiency: Efficiency = USUAL,
) -> tuple[float, float]:
    """Until the first token, and of one step after that."""
    flops = _flops(card, dtype) * efficiency.compute_share * gpus
    bandwidth = card.bandwidth * efficiency.bandwidth_share * gpus
    (prefill, read), (work, streamed) = demands(of, prompt_tokens, new_tokens, batch)
    launching = of.layers * efficiency.layer_seconds
    ttft = max(read / bandwidth, prefill / flops) + launching + _exchange(of, card, batch * prompt_tokens, gpus)
    step = max(streamed / bandwidth, work / flops) + launching + _exchange(of, card, batch, gpus)
    return ttft, step


def demands(
    of: Sizes, prompt_tokens: int, new_tokens: int, batch: int
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Operations and bytes until the first token, and of one step in the middle of the answer."""
    causal = 2 * of.attention_width * prompt_tokens  # scores and values, over half of the prompt on average
    prefill = batch * (prompt_tokens * (2 * of.layer_weights + causal) + 2 * of.head_weights)
    context = prompt_tokens + new_tokens / 2
    cache = batch * of.cached(context)
    work = batch * (2 * (of.layer_weights + of.head_weights) + 4 * of.attention_width * context)
    return (prefill, of.streamed_bytes), (work, of.read(batch) + cache)


def assumptions() -> dict[str, float]:
    """The shares that the model takes, for a record."""
    return {
        "bandwidth_share": BANDWIDTH_SHARE,
        "compute_share": COMPUTE_SHARE,
        "layer_seconds": LAYER_SECONDS,
        "memory_share": memory.MEMORY_SHARE,
        "runtime_bytes": memory.RUNTIME_BYTES,
    }


def _longest(of: Sizes, room: float, batch: int, gpus: int) -> int:
    """The longest context of each of `batch` texts in so many bytes: activations grow with it up to a chunk."""
    scale = of.cached(1, gpus) / (of.cache.numbers(1) or 1)

    def holds(tokens: int) -> bool:
        return batch * of.cached(tokens, gpus) + gpus * of.activations.nbytes(tokens, batch) <= room

    full = (room - gpus * of.activations.nbytes(memory.CHUNK, batch)) / (batch * scale or 1)
    tokens = int(min(of.cache.longest(max(0.0, full)), 1e12))
    while not holds(tokens) and tokens:
        tokens -= 1
    if tokens * batch >= memory.CHUNK:
        return tokens
    low, high = 0, memory.CHUNK // batch + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _most(of: Sizes, room: float, context: int, gpus: int) -> int:
    """The most texts of that length in so many bytes."""
    text = of.cached(context, gpus) + gpus * of.activations.text
    shared = gpus * of.activations.nbytes(context, 1) - gpus * of.activations.text
    chunk = gpus * memory.CHUNK * of.activations.token
    few = int(room // (text + shared)) if text + shared else 0
    many = int((room - chunk) // text) if text else few
    return max(0, many if many * context >= memory.CHUNK else min(few, memory.CHUNK // context))


def _exchange(of: Sizes, card: Card, tokens: int, gpus: int) -> float:
    """Seconds in which cards add up their halves, twice a layer."""
    if gpus == 1:
        return 0.0
    carried = 2 * (gpus - 1) / gpus * tokens * of.hidden * 2
    return 2 * of.layers * (EXCHANGE_SECONDS + carried / card.link)


def _flops(card: Card, dtype: str) -> float:
    if dtype not in DTYPES:
        raise RecipeError(f"dtype {dtype!r} is not supported", f"choose from {', '.join(DTYPES)}")
    flops = card.fp16_flops if dtype == "float16" else card.bf16_flops
    if not flops:
        raise RecipeError(f"the {card.name} has no bfloat16", "use float16")
    return flops

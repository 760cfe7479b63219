"""Inventory: the tensors of a model counted by kind, from headers or from config.json alone.

Families that can be quantized are known by their tables. Of others the headers are counted; if there is only a
config.json, their sizes follow from its numbers, and `note` says what was taken for granted. No weight is read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from r1quant.arch.tables import Architecture, architectures, head_dim, is_tied, size
from r1quant.checkpoint.tensorfile import TensorSpec
from r1quant.core.floats import FLOAT_DTYPES
from r1quant.core.json import Config
from r1quant.errors import CheckpointError

STORED = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
DIGITS = re.compile(r"(?<=\.)\d+(?=\.)")
# Roles of linears in layers by the last part of their name, in the families of the Hub.
ROLES = {
    "q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "out", "down_proj": "down", "w2": "down",
    "dense": "out", "out_proj": "out",
}  # fmt: skip
NOT_QUANTIZED = re.compile(r"norm|router|\.gate$|\.conv|bias")
LIKE_LLAMA = {  # families whose config.json says all that a Llama's does, with the norms of a layer
    "mixtral": 2, "qwen2_moe": 2, "qwen3_moe": 2, "deepseek_v2": 2, "deepseek_v3": 2, "kimi_k2": 2, "gemma": 2,
    "gemma2": 4, "phi3": 2, "smollm3": 2, "granite": 2,
}  # fmt: skip
HEAD_NORMS = ("qwen3", "qwen3_moe")
QKV_BIASES = ("qwen2", "qwen2_moe")
TIED_BY_DEFAULT = ("gemma", "gemma2")


@dataclass(frozen=True)
class InventoryPart:
    """Tensors of one kind.

    name    of one of them; for linears without `.weight`
    role    embedding, head, plain (never quantized), or of a linear in a layer: query, key, value, out, down, linear
    expert  of a routed expert, of which a token passes only some
    """

    name: str
    shape: tuple[int, ...]
    count: int
    role: str
    dtype: str
    expert: bool = False

    @property
    def numbers(self) -> int:
        return self.count * math.prod(self.shape)

    @property
    def linear(self) -> bool:
        """Whether it is quantized."""
        return self.role not in ("embedding", "head", "plain")


@dataclass(frozen=True)
class Inventory:
    """config: that of the language model; note: what was taken for granted, in one line, or nothing."""

    config: Config
    parts: tuple[InventoryPart, ...]
    note: str = ""

    @property
    def parameters(self) -> int:
        return sum(part.numbers for part in self.parts)

    @property
    def tied(self) -> bool:
        return not any(part.role == "head" for part in self.parts)

    @property
    def dtype(self) -> str:
        """Of most numbers."""
        return max(self.parts, key=lambda part: part.numbers).dtype

    @property
    def experts(self) -> tuple[int, int]:
        """Routed experts of a layer, and how many of them a token passes; (1, 1) if there are none."""
        return _experts(self.config)


def of_headers(config: Config, tensors: Iterable[TensorSpec]) -> Inventory:
    """Counts the tensors. If they are quantized already, sizes follow from config.json, and `note` says so."""
    config = text_config(config)
    arch = architectures().get(str(config.get("model_type")))
    tied = is_tied(config)
    kinds: dict[tuple[str, str, tuple[int, ...]], list[TensorSpec]] = {}
    for spec in tensors:
        if spec.dtype not in FLOAT_DTYPES:
            return of_config(config, "the checkpoint is quantized already: sizes are those of the model before that")
        if arch is not None and (spec.name.endswith(arch.tensors.ignored) or (tied and spec.name == arch.tensors.head)):
            continue
        key = DIGITS.sub("#", spec.name), spec.dtype, tuple(spec.shape)
        kinds.setdefault(key, []).append(spec)
    parts = [_part(alike[0], len(alike), _role(alike[0], arch)) for alike in kinds.values()]
    known = "" if arch else f"{config.get('model_type')!r} cannot be quantized yet: sizes follow from the headers alone"
    return Inventory(config, tuple(parts), known)


def of_config(config: Config, note: str = "") -> Inventory:
    """The tensors that config.json implies. Raises CheckpointError if it lacks a size."""
    config = text_config(config)
    dtype = STORED.get(str(config.get("torch_dtype") or config.get("dtype")), "BF16")
    arch = architectures().get(str(config.get("model_type")))
    if arch is None:
        parts = _like_llama(config, dtype)
        family = config.get("model_type")
        if family not in LIKE_LLAMA:
            note = note or f"the architecture {family!r} is not known: sizes are estimated as of a Llama"
        return Inventory(config, tuple(parts), note)
    tied = is_tied(config)
    maybe = arch.layer.biases == "optional"
    specs = [
        TensorSpec(name, dtype, shape)
        for name, shape in arch.shapes(config).items()
        if not (tied and name == arch.tensors.head)
        and not (maybe and name.endswith(".bias") and not _biased(name, config))
    ]
    return replace(of_headers(config, specs), note=note)


def text_config(config: Config) -> Config:
    """The language model's part of the config of a model that also sees or hears."""
    inner = config.get("text_config")
    return {**config, **inner} if isinstance(inner, dict) else config


def _biased(name: str, config: Config) -> bool:
    """Whether config.json says that there is this bias."""
    return bool(config.get("mlp_bias" if ".mlp." in name else "attention_bias"))


def _part(spec: TensorSpec, count: int, role: str) -> InventoryPart:
    name = spec.name if role in ("embedding", "head", "plain") else spec.name.removesuffix(".weight")
    return InventoryPart(name, tuple(spec.shape), count, role, spec.dtype, ".experts." in spec.name)


def _role(spec: TensorSpec, arch: Architecture | None) -> str:
    last = spec.name.removesuffix(".weight")
    if arch is not None:
        if spec.name in (arch.tensors.embedding, arch.tensors.head):
            return "embedding" if spec.name == arch.tensors.embedding else "head"
        linear = next((name for name in arch.layer.linears if spec.name.endswith(f"{name}.weight")), None)
        return "plain" if linear is None else arch.layer.role(linear)
    if "embed_tokens" in last or last.endswith((".wte", "word_embeddings")):
        return "embedding"
    if last.endswith(("lm_head", "embed_out")):
        return "head"
    if len(spec.shape) != 2 or not DIGITS.search(spec.name) or last == spec.name or NOT_QUANTIZED.search(last):
        return "plain"
    return ROLES.get(last.rpartition(".")[2], "linear")


def _like_llama(config: Config, dtype: str) -> list[InventoryPart]:
    """Attention (grouped or latent), an MLP or routed experts in each layer, norms."""
    layers, hidden = size(config, "num_hidden_layers"), size(config, "hidden_size")
    family, vocabulary = str(config.get("model_type")), size(config, "vocab_size")
    parts = [InventoryPart("model.embed_tokens.weight", (vocabulary, hidden), 1, "embedding", dtype)]
    if not config.get("tie_word_embeddings", family in TIED_BY_DEFAULT):
        parts.append(InventoryPart("lm_head.weight", (vocabulary, hidden), 1, "head", dtype))
    parts.append(InventoryPart("model.norm.weight", (hidden,), 1, "plain", dtype))
    norms = LIKE_LLAMA.get(family, 2) * layers
    parts.append(InventoryPart("model.layers.0.norm.weight", (hidden,), norms, "plain", dtype))
    linears: list[tuple[str, tuple[int, int], int, bool]] = []
    for name, shape in _attention(config, hidden).items():
        if len(shape) == 2:
            linears.append((f"self_attn.{name}", (shape[0], shape[1]), layers, False))
        else:
            parts.append(InventoryPart(f"model.layers.0.self_attn.{name}", shape, layers, "plain", dtype))
    experts, _ = _experts(config)
    sparse = _sparse_layers(config, layers) if experts > 1 else 0
    if sparse < layers:
        linears += _mlp("mlp", hidden, size(config, "intermediate_size"), layers - sparse, False)
    if sparse:
        inner = size(config, "moe_intermediate_size", size(config, "intermediate_size"))
        linears += _mlp("mlp.experts.0", hidden, inner, sparse * experts, True)
        parts.append(InventoryPart("model.layers.0.mlp.gate.weight", (experts, hidden), sparse, "plain", dtype))
        if config.get("topk_method") == "noaux_tc":
            parts.append(
                InventoryPart("model.layers.0.mlp.gate.e_score_correction_bias", (experts,), sparse, "plain", "F32")
            )
        shared = config.get("n_shared_experts")
        wide = size(config, "n_shared_experts") * inner if shared else config.get("shared_expert_intermediate_size")
        if wide:
            linears += _mlp("mlp.shared_experts", hidden, int(wide), sparse, False)
        if config.get("shared_expert_intermediate_size"):
            parts.append(
                InventoryPart("model.layers.0.mlp.shared_expert_gate.weight", (1, hidden), sparse, "plain", dtype)
            )
    for name, shape, count, expert in linears:
        role = ROLES.get(name.rpartition(".")[2], "linear")
        parts.append(InventoryPart(f"model.layers.0.{name}", shape, count, role, dtype, expert))
    return parts


def _attention(config: Config, hidden: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the linears and vectors of the attention of one layer."""
    heads = size(config, "num_attention_heads")
    if config.get("kv_lora_rank"):
        latent, rotary = size(config, "kv_lora_rank"), size(config, "qk_rope_head_dim")
        plain, values = size(config, "qk_nope_head_dim"), size(config, "v_head_dim")
        query = heads * (plain + rotary)
        shapes: dict[str, tuple[int, ...]] = {"kv_a_proj_with_mqa": (latent + rotary, hidden)}
        shapes |= {"kv_b_proj": (heads * (plain + values), latent), "o_proj": (hidden, heads * values)}
        shapes["kv_a_layernorm.weight"] = (latent,)
        if config.get("q_lora_rank"):
            rank = size(config, "q_lora_rank")
            return shapes | {"q_a_proj": (rank, hidden), "q_b_proj": (query, rank), "q_a_layernorm.weight": (rank,)}
        return shapes | {"q_proj": (query, hidden)}
    kv_heads, head = size(config, "num_key_value_heads", heads), head_dim(config)
    shapes = {"q_proj": (heads * head, hidden), "o_proj": (hidden, heads * head)}
    shapes |= dict.fromkeys(("k_proj", "v_proj"), (kv_heads * head, hidden))
    family = config.get("model_type")
    if family in HEAD_NORMS:
        shapes |= {f"{name}.weight": (head,) for name in ("q_norm", "k_norm")}
    if family in QKV_BIASES or config.get("attention_bias"):
        shapes |= {f"{name}.bias": shapes[name][:1] for name in ("q_proj", "k_proj", "v_proj")}
    return shapes


def _mlp(name: str, hidden: int, inner: int, count: int, expert: bool) -> list[tuple[str, tuple[int, int], int, bool]]:
    shapes = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
    return [(f"{name}.{last}", shape, count, expert) for last, shape in shapes.items()]


def _experts(config: Config) -> tuple[int, int]:
    for key in ("n_routed_experts", "num_experts", "num_local_experts"):
        if config.get(key):
            return size(config, key), size(config, "num_experts_per_tok", 1)
    return 1, 1


def _sparse_layers(config: Config, layers: int) -> int:
    """Layers that have experts instead of one MLP."""
    first, dense = config.get("first_k_dense_replace") or 0, config.get("mlp_only_layers") or []
    every = size(config, "moe_layer_freq" if "first_k_dense_replace" in config else "decoder_sparse_step", 1)
    if not isinstance(first, int) or not isinstance(dense, list):
        raise CheckpointError("config.json does not say which layers have experts", "restore the model's own file")
    shift = 0 if "first_k_dense_replace" in config else 1
    return sum(i >= first and (i + shift) % every == 0 and i not in dense for i in range(layers))

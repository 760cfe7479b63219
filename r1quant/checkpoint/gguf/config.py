"""config.json and generation_config.json out of the metadata of a GGUF file.

The keys are those of transformers 4 (`rope_theta`, `rope_scaling`, `torch_dtype`), which every reader understands.
It does not know the tensors' contents, except for the one small table of rotary factors that Llama 3 files carry.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from r1quant.arch.rope import llama3_factors, magnitude
from r1quant.arch.tables import Architecture, architectures, query_scalar
from r1quant.checkpoint.gguf.header import GgufHeader, StoredTensor, shown
from r1quant.core.json import Config
from r1quant.errors import CheckpointError

ROPE_FREQS = "rope_freqs.weight"
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
TURNS = LLAMA3["low_freq_factor"], LLAMA3["high_freq_factor"]
FILE_TYPES = {0: "F32", 1: "F16"}
TORCH_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# The name of a special token in Hugging Face files, and in the keys of GGUF.
TOKENS = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
SAMPLING = {"temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}
SLIDING_WINDOW, PATTERN = "attention.sliding_window", "attention.sliding_window_pattern"
SAFETENSORS = "use the model's safetensors checkpoint"


def architecture_of_gguf(header: GgufHeader) -> Architecture:
    """The family that a file's `general.architecture` names; Mistral models call themselves llama there."""
    name = header.text("general.architecture")
    matching = [arch for arch in architectures().values() if arch.gguf.architecture == name]
    if not matching or header.metadata.get(f"{name}.expert_count", 0):
        known = ", ".join(dict.fromkeys(arch.gguf.architecture for arch in architectures().values()))
        kind = "a mixture of experts" if matching else shown(name)
        raise CheckpointError(
            f"{header.path.name}: the architecture is {kind}, which is not supported", f"supported are dense {known}"
        )
    return next((arch for arch in matching if arch.model_type == name), matching[0])


def dtype_of(header: GgufHeader) -> str:
    """The dtype in which the file's tensors are presented: its own if it is all floats, else BF16."""
    return FILE_TYPES.get(header.whole("general.file_type", 1024), "BF16")


def model_config(header: GgufHeader, arch: Architecture, rope_freqs: npt.NDArray[np.float32] | None) -> dict[str, Any]:
    """config.json. rope_freqs is the table of that name, [head_dim / 2], if the file has one."""
    prefix = arch.gguf.architecture
    hidden = header.whole(f"{prefix}.embedding_length", least=1)
    heads = header.whole(f"{prefix}.attention.head_count", least=1)
    kv_heads = header.whole(f"{prefix}.attention.head_count_kv", heads, least=1)
    if heads % kv_heads:
        raise header.unusable(f"{heads} heads of q cannot share {kv_heads} heads of k and v")
    head_dim = _head_dim(header, prefix, max(1, hidden // heads))
    config = {
        "architectures": [arch.model_class],
        "model_type": arch.model_type,
        "hidden_size": hidden,
        "intermediate_size": header.whole(f"{prefix}.feed_forward_length", least=1),
        "num_hidden_layers": _layers(header, prefix),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        **arch.gguf.implied,
        "rms_norm_eps": header.real(f"{prefix}.attention.layer_norm_rms_epsilon"),
        "vocab_size": _tensor(header, "token_embd.weight", 2).shape[0],
        "max_position_embeddings": header.whole(f"{prefix}.context_length", least=1),
        "rope_theta": header.real(f"{prefix}.rope.freq_base", 10000.0),
        "rope_scaling": None,
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "torch_dtype": TORCH_DTYPES[dtype_of(header)],
    }
    config |= _of_family(header, arch, config)
    config |= _biases(header, arch)
    config |= {f"{name}_token_id": token_id(header, key) for name, key in TOKENS.items() if name != "unk"}
    config["rope_scaling"] = _rope_scaling(header, prefix, config, rope_freqs)
    return config


def _of_family(header: GgufHeader, arch: Architecture, config: Config) -> dict[str, Any]:
    """What some families have beyond the sizes: sliding windows, and a scale of the attention scores of their own.

    Raises CheckpointError if the file has what the architecture table calls unsupported.
    """
    prefix, found = arch.gguf.architecture, dict[str, Any]()
    for key in arch.unsupported:
        if header.metadata.get(f"{prefix}.{key}"):
            raise CheckpointError(f"{header.path.name}: {prefix}.{key} is not supported", SAFETENSORS)
    if SLIDING_WINDOW in arch.gguf.metadata:
        found["sliding_window"] = header.whole(f"{prefix}.{SLIDING_WINDOW}", least=1)
    for key, name in (("sliding_window_pattern", PATTERN), ("rope_local_base_freq", "rope.freq_base_swa")):
        if key in arch.gguf.implied and f"{prefix}.{name}" in header.metadata:
            read = header.whole if name == PATTERN else header.real
            found[key] = read(f"{prefix}.{name}")
    if "query_pre_attn_scalar" in arch.defaults:
        found["query_pre_attn_scalar"] = query_scalar(config, arch)
    return found


def generation_config(header: GgufHeader) -> dict[str, Any]:
    """generation_config.json: the ids that begin and end a text and, if the file has them, sampling values."""
    config: dict[str, Any] = {f"{name}_token_id": token_id(header, TOKENS[name]) for name in ("bos", "eos", "pad")}
    turn = token_id(header, "eot")
    if turn is not None and config["eos_token_id"] not in (None, turn):
        config["eos_token_id"] = [config["eos_token_id"], turn]
    config = {key: value for key, value in config.items() if value is not None}
    sampling = {
        name: header.metadata[f"general.sampling.{key}"]
        for key, name in SAMPLING.items()
        if isinstance(header.metadata.get(f"general.sampling.{key}"), int | float)
    }
    return config | ({"do_sample": True, **sampling} if sampling else {})


def token_id(header: GgufHeader, name: str) -> int | None:
    """`tokenizer.ggml.NAME_token_id` if the file has it. Raises CheckpointError if it is no id of the vocabulary."""
    key = f"tokenizer.ggml.{name}_token_id"
    if key not in header.metadata:
        return None
    value = header.whole(key)
    if value >= _tensor(header, "token_embd.weight", 2).shape[0]:
        raise header.unusable(f"{key} is {value}, beyond the vocabulary")
    return value


def _tensor(header: GgufHeader, name: str, rank: int) -> StoredTensor:
    tensor = header.tensors.get(name)
    if tensor is None or len(tensor.shape) != rank:
        raise header.unusable(f"the tensor {name} is missing or does not have {rank} dimensions")
    return tensor


def _layers(header: GgufHeader, prefix: str) -> int:
    count = header.whole(f"{prefix}.block_count", least=1)
    if count > len(header.tensors):
        raise header.unusable(f"{prefix}.block_count is {count}, but there are {len(header.tensors)} tensors")
    return count


def _head_dim(header: GgufHeader, prefix: str, default: int) -> int:
    rotary = f"{prefix}.rope.dimension_count"
    key, value = f"{prefix}.attention.key_length", f"{prefix}.attention.value_length"
    head_dim = header.whole(key, default, least=1)
    for other in (rotary, value):
        if header.whole(other, head_dim) != head_dim:
            raise header.unusable(f"{other} is {header.metadata[other]}, but the heads have {head_dim} columns")
    if head_dim % 2:
        raise header.unusable(f"the heads have {head_dim} columns, which cannot be rotated in pairs")
    return head_dim


def _biases(header: GgufHeader, arch: Architecture) -> dict[str, bool]:
    """attention_bias and mlp_bias. A model class has its biases all or not at all, so a file must too."""

    def present(*stems: str) -> bool:
        found = [f"blk.0.{stem}.bias" in header.tensors for stem in stems]
        if any(found) and not all(found):
            raise header.unusable(f"only some of {', '.join(stems)} have biases, which {arch.model_class} cannot hold")
        return all(found)

    if arch.layer.biases == "qkv":
        if not present("attn_q", "attn_k", "attn_v"):
            raise header.unusable(f"the biases of attn_q, attn_k and attn_v are missing from {arch.model_class}")
        return {"attention_bias": True}
    attention = present("attn_q", "attn_k", "attn_v", "attn_output")
    mlp = present("ffn_gate", "ffn_up", "ffn_down")
    if mlp and arch.model_type != "llama":
        raise header.unusable(f"the MLP has biases, which {arch.model_class} cannot hold")
    return {"attention_bias": attention} | ({"mlp_bias": mlp} if arch.model_type == "llama" else {})


def _rope_scaling(
    header: GgufHeader, prefix: str, config: Config, rope_freqs: npt.NDArray[np.float32] | None
) -> dict[str, Any] | None:
    key = f"{prefix}.rope.scaling"
    kind = header.text(f"{key}.type", "none")
    if rope_freqs is not None and kind == "none":
        return _llama3(header, config, rope_freqs)
    if rope_freqs is not None or kind not in ("none", "linear", "yarn"):
        what = f"the RoPE scaling {shown(kind)}" + (f" together with {ROPE_FREQS}" if rope_freqs is not None else "")
        raise CheckpointError(f"{header.path.name}: {what} is not supported", SAFETENSORS)
    factor = header.real(f"{key}.factor", 1.0)
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return None
    scaling: dict[str, Any] = {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        context = config["max_position_embeddings"]
        scaling["original_max_position_embeddings"] = header.whole(f"{key}.original_context_length", context, least=1)
        for name in ("beta_fast", "beta_slow"):
            if f"{key}.yarn_{name}" in header.metadata:
                scaling[name] = header.real(f"{key}.yarn_{name}")
        # llama.cpp multiplies YaRN's own attention factor by attn_factor, and only stores yarn_attn_factor.
        if f"{key}.attn_factor" in header.metadata:
            product = header.real(f"{key}.attn_factor") * magnitude(factor)
            scaling["attention_factor"] = float(str(np.float32(product)))
        elif f"{key}.yarn_attn_factor" in header.metadata:
            scaling["attn_factor"] = header.real(f"{key}.yarn_attn_factor")
        if header.real(f"{key}.yarn_ext_factor", 1.0) != 1.0:
            raise CheckpointError(f"{header.path.name}: YaRN with an ext_factor is not supported", SAFETENSORS)
    return scaling


def _llama3(header: GgufHeader, config: Config, rope_freqs: npt.NDArray[np.float32]) -> dict[str, Any] | None:
    """The parameters of Llama 3 scaling whose factors are the given table; None if the table scales nothing."""
    factor = float(rope_freqs.max(initial=1.0))
    if rope_freqs.shape == (config["head_dim"] // 2,) and 1.0 <= factor < math.inf:
        head_dim, theta = config["head_dim"], config["rope_theta"]
        usual = LLAMA3["original_max_position_embeddings"]
        for context in (usual, _original_context(head_dim, theta, factor, rope_freqs)):
            expected = llama3_factors(head_dim, theta, factor, (*TURNS, context))
            if np.allclose(rope_freqs, expected, rtol=1e-4, atol=0.0):
                stated = {
                    "rope_type": "llama3",
                    "factor": factor,
                    **LLAMA3,
                    "original_max_position_embeddings": context,
                }
                return None if factor == 1.0 else stated
    raise CheckpointError(
        f"{header.path.name}: {ROPE_FREQS} does not follow the rule of Llama 3, so its parameters are unknown",
        SAFETENSORS,
    )


def _original_context(head_dim: int, theta: float, factor: float, table: npt.NDArray[np.float32]) -> int:
    """The original context of Llama 3 scaling, from the first frequency that is neither kept nor fully stretched."""
    blended = np.flatnonzero((table > 1) & (table < factor))
    if not blended.size:
        return 1
    kept = (1 / float(table[blended[0]]) - 1 / factor) / (1 - 1 / factor)
    turns = TURNS[0] + kept * (TURNS[1] - TURNS[0])
    context = float(turns * 2 * math.pi * theta ** (2 * int(blended[0]) / head_dim))
    return max(1, round(min(context, 2.0**31)))

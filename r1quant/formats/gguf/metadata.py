"""A model's configuration as the metadata keys of GGUF: general, sizes, rotary embeddings.

llama.cpp multiplies cosine and sine of a YaRN model by 0.1 * ln(factor) + 1 and by `rope.scaling.attn_factor`, so
that key is written such that the product is the model's own attention factor. `rope.scaling.yarn_attn_factor` is
written as llama.cpp's converter does; its loaders of these families do not read it. Llama 3 scaling is a table of
frequencies among the tensors. It does not know tokenizers or blocks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from r1quant.arch import rope
from r1quant.arch.kvcache import windows
from r1quant.arch.tables import Architecture, head_dim, query_scalar, rms_epsilon, size, stated
from r1quant.checkpoint.artifact import generation_config
from r1quant.checkpoint.gguf.config import SAMPLING, SLIDING_WINDOW
from r1quant.core.json import Config
from r1quant.errors import CheckpointError
from r1quant.formats.gguf.container import Metadata

QUANTIZATION_VERSION = 2
SIZES = ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K"))


def general(arch: Architecture, side_files: Mapping[str, bytes], name: str, parameters: int) -> Metadata:
    """The keys that say what the file is. parameters: how many numbers its tensors have."""
    keys: Metadata = {"general.architecture": arch.gguf.architecture, "general.type": "model"}
    keys |= _sampling(side_files)
    return keys | {"general.name": name, "general.size_label": size_label(parameters)}


def size_label(parameters: int) -> str:
    """135M, 8.2B: rounded to two digits if there is only one before the point."""
    unit, letter = next(((u, s) for u, s in SIZES if parameters > u), SIZES[-1])
    scaled = parameters / unit
    return f"{scaled:.{max(0, 2 - len(str(round(scaled)).lstrip('0')))}f}{letter}"


def _sampling(side_files: Mapping[str, bytes]) -> Metadata:
    """The sampling values of generation_config.json."""
    sampling = generation_config(side_files)
    keys: Metadata = {}
    for key in ("top_k", "top_p", "min_p", "temp"):
        value = sampling.get(SAMPLING[key])
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            keys[f"general.sampling.{key}"] = np.int32(value) if key == "top_k" else float(value)
    return keys


def model(config: Config, arch: Architecture, file_type: int) -> Metadata:
    """Sizes and rotary embeddings. Raises CheckpointError if GGUF or llama.cpp has no place for what config says."""
    _check_implied(config, arch)
    prefix = arch.gguf.architecture
    heads = size(config, "num_attention_heads")
    keys: Metadata = {
        "block_count": size(config, "num_hidden_layers"),
        "context_length": size(config, "max_position_embeddings"),
        "embedding_length": size(config, "hidden_size"),
        "feed_forward_length": size(config, "intermediate_size"),
        "attention.head_count": heads,
        "attention.head_count_kv": size(config, "num_key_value_heads", heads),
    }
    keys |= _rotary(config)
    keys["attention.layer_norm_rms_epsilon"] = rms_epsilon(config)
    columns = head_dim(config)
    keys |= {"attention.key_length": columns, "attention.value_length": columns}
    if SLIDING_WINDOW in arch.gguf.metadata:
        keys[SLIDING_WINDOW] = size(config, "sliding_window")
    more = {"vocab_size": size(config, "vocab_size"), "rope.dimension_count": columns}
    keys |= {key: value for key, value in more.items() if key in arch.gguf.metadata}
    prefixed = {f"{prefix}.{key}": value for key, value in keys.items()}
    return prefixed | {"general.file_type": file_type, "general.quantization_version": QUANTIZATION_VERSION}


def _check_implied(config: Config, arch: Architecture) -> None:
    """That llama.cpp computes what config.json says, as far as no key of GGUF says it."""
    implied = dict(arch.gguf.implied)
    if "query_pre_attn_scalar" in arch.defaults:
        implied["query_pre_attn_scalar"] = query_scalar(config, arch)
    settings = {key: value for key, value in config.items() if key not in ("layer_types", "rope_parameters")}
    for key, value in implied.items():
        if key == "sliding_window_pattern":
            same = windows(config) == windows({**settings, key: value})
        elif key == rope.LOCAL_THETA:
            local, whole = rope.parameters(rope.of_kind(config, rope.SLIDING)), rope.parameters(config)
            same = (local["rope_type"], local["rope_theta"]) == ("default", value)
            same = same and whole["rope_type"] in ("default", "linear")  # anything else would go for all layers
        else:
            same = stated(config, key, value) == value
        if not same:
            raise CheckpointError(
                f"config.json: llama.cpp computes {arch.gguf.architecture} models with {key} = {value!r}, which this "
                "one does not have",
                "run this model from safetensors",
            )


def _rotary(config: Config) -> Metadata:
    settings = rope.parameters(config)
    kind = settings["rope_type"]
    keys: Metadata = {"rope.freq_base": float(settings["rope_theta"])}
    if kind in ("default", "llama3"):
        return keys
    original = _original_context(config, settings)
    factor = float(settings["factor"] if kind == "linear" else settings.get("factor", _context(config) / original))
    keys |= {"rope.scaling.type": kind, "rope.scaling.factor": factor}
    if kind == "linear":
        return keys
    if not settings.get("truncate", True):
        raise CheckpointError(
            "config.json: YaRN with truncate = false cannot be said in GGUF", "run this model from safetensors"
        )
    keys["rope.scaling.original_context_length"] = original
    keys["rope.scaling.attn_factor"] = rope.attention_factor(config) / rope.magnitude(factor)  # its own
    attention_factor = settings.get("attention_factor", settings.get("attn_factor"))
    for name, value in (
        ("attn_factor", attention_factor),
        ("beta_fast", settings.get("beta_fast")),
        ("beta_slow", settings.get("beta_slow")),
    ):
        if value is not None:
            keys[f"rope.scaling.yarn_{name}"] = float(value)
    _check_betas(settings)
    return keys


def _context(config: Config) -> int:
    return size(config, "max_position_embeddings")


def _original_context(config: Config, settings: Config) -> int:
    key = "original_max_position_embeddings"
    return size({key: config.get(key, settings.get(key))}, key, _context(config))


def _check_betas(settings: Config) -> None:
    """The loaders of these families do not read the betas, so only the usual ones give the right frequencies."""
    for name, usual in (("beta_fast", 32), ("beta_slow", 1)):
        if settings.get(name, usual) != usual:
            raise CheckpointError(
                f"config.json: YaRN has {name} = {settings[name]!r}, llama.cpp computes with {usual}",
                "run this model from safetensors",
            )


def rope_table(config: Config) -> npt.NDArray[np.float32] | None:
    """`rope_freqs.weight`, float32 [head_dim / 2]: what Llama 3 scaling divides each frequency by; None for others."""
    settings = rope.parameters(config)
    if settings["rope_type"] != "llama3":
        return None
    return rope.llama3_table(config).astype(np.float32)

"""Rotary position embeddings out of config.json: frequencies, and the factor that YaRN puts on cosine and sine.

Every export takes its numbers from here, so that one model has one rotary embedding in all formats. If the
configuration of a YaRN model states `attn_factor` and no `attention_factor` (DeepSeek-R1-0528-Qwen3-8B does), the
factor is attn_factor * (0.1 * ln(factor) + 1): there it is 1.0, which its authors meant. transformers ignores that
key and computes 1.1386. It does not know how a format stores any of this.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from r1quant.arch.tables import head_dim, size, stated
from r1quant.core.json import Config, JsonObject
from r1quant.errors import CheckpointError

ROPE_TYPES = ("default", "linear", "llama3", "yarn")
DEFAULT_THETA = 10000.0
FULL, SLIDING = "full_attention", "sliding_attention"  # kinds of layers, in `layer_types`
LOCAL_THETA = "rope_local_base_freq"


def parameters(config: Config) -> JsonObject:
    """All rotary settings of a config.json under the names of transformers 5, `rope_type` and `rope_theta` among them.

    If layers of several kinds have settings of their own, those of full attention; see `of_kind`.
    Raises CheckpointError for a type that is not in ROPE_TYPES, and if only a part of each head is rotated.
    """
    config = of_kind(config, FULL)
    found: dict[str, Any] = {}
    for key in ("rope_scaling", "rope_parameters"):
        table = config.get(key)
        if table is not None and not isinstance(table, Mapping):
            raise _invalid(key, table)
        found |= {name: value for name, value in (table or {}).items() if value is not None}
    kind = found.get("rope_type", found.get("type", "default"))
    if kind not in ROPE_TYPES:
        raise CheckpointError(
            f"config.json: rotary embeddings of the type {kind!r} are not supported",
            f"supported are: {', '.join(ROPE_TYPES)}",
        )
    partial = found.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if partial not in (None, 1):
        raise CheckpointError(
            f"config.json: partial_rotary_factor is {partial!r}: only a part of each head is rotated",
            "models that rotate whole heads are supported",
        )
    theta = found.get("rope_theta", stated(config, "rope_theta", DEFAULT_THETA))
    return {**found, "rope_type": kind, "rope_theta": theta}


def of_kind(config: Config, kind: str) -> Config:
    """The configuration as the layers of one kind see it, FULL or SLIDING: with one set of rotary settings.

    Gemma 3 states them by kind (`rope_parameters` of transformers 5), or as `rope_local_base_freq` beside those of full
    attention. If nothing is stated by kind, the configuration itself.
    """
    local, table = stated(config, LOCAL_THETA), config.get("rope_parameters")
    nested = isinstance(table, Mapping) and any(isinstance(value, Mapping) for value in table.values())
    if not nested and (local is None or kind != SLIDING):
        return config
    own = table.get(kind) if nested and isinstance(table, Mapping) else {}
    if own is not None and not isinstance(own, Mapping):
        raise _invalid("rope_parameters", table)
    plain = {key: value for key, value in config.items() if key not in ("rope_scaling", "rope_theta")}
    base = {"rope_theta": local} if kind == SLIDING and local is not None else {}
    return {**plain, "rope_parameters": base | dict(own or {})}


def attention_factor(config: Config) -> float:
    """What cosine and sine are multiplied with: 1.0 for all types but yarn."""
    rope = parameters(config)
    if rope["rope_type"] != "yarn":
        return 1.0
    if "attention_factor" in rope:
        return _number(rope, "attention_factor")
    factor = _factor(config, rope)
    if "attn_factor" in rope:
        return _number(rope, "attn_factor") * magnitude(factor)
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return magnitude(factor, _number(rope, "mscale")) / magnitude(factor, _number(rope, "mscale_all_dim"))
    return magnitude(factor)


def explicit(config: Config) -> Config:
    """The configuration with YaRN's attention factor stated, so that every reader takes the same; else unchanged."""
    found = dict(config)
    if parameters(config)["rope_type"] == "yarn":
        for key in ("rope_scaling", "rope_parameters"):
            table = config.get(key)
            if table and isinstance(table.get(FULL), Mapping):
                found[key] = {**table, FULL: {**table[FULL], "attention_factor": attention_factor(config)}}
            elif table:
                found[key] = {**table, "attention_factor": attention_factor(config)}
    return found


def inverse_frequencies(config: Config) -> npt.NDArray[np.float32]:
    """float32 [head_dim / 2]: radians that one position turns each pair of a head. Rounded once, at the end."""
    rope = parameters(config)
    dim = _head_dim(config)
    plain = _number(rope, "rope_theta") ** -(np.arange(0, dim, 2) / dim)
    kind = rope["rope_type"]
    if kind == "linear":
        plain = plain / _number(rope, "factor")
    elif kind == "llama3":
        plain = plain / llama3_table(config)
    elif kind == "yarn":
        plain = _yarn(config, rope, plain)
    return plain.astype(np.float32)


def cos_sin(
    config: Config, positions: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Cosine and sine, float32 [positions, head_dim / 2] each, the attention factor multiplied in.

    The angle is rounded to float32, as models are trained with.
    """
    angle = positions.astype(np.float32)[:, None] * inverse_frequencies(config)[None, :]
    factor = attention_factor(config)
    wide = angle.astype(np.float64)
    return (np.cos(wide) * factor).astype(np.float32), (np.sin(wide) * factor).astype(np.float32)


def llama3_table(config: Config) -> npt.NDArray[np.float64]:
    """By what Llama 3 scaling divides each frequency, float64 [head_dim / 2]."""
    rope = parameters(config)
    factor, low, high = (_number(rope, key) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    if low == high:
        raise _invalid("high_freq_factor", high)
    turning = low, high, _original_positions(config, rope)
    return llama3_factors(_head_dim(config), _number(rope, "rope_theta"), factor, turning)


def llama3_factors(
    columns: int, theta: float, factor: float, turning: tuple[float, float, float]
) -> npt.NDArray[np.float64]:
    """By what Llama 3 scaling divides the frequency of each pair of a head of `columns`, float64 [columns / 2].

    Short waves are kept, long ones stretched by the factor, and those between get a mean of both frequencies. turning:
    how often within the original context, its third number, a wave turns at most and at least where that begins.
    """
    low, high, context = turning
    turns = context * theta ** -(np.arange(0, columns, 2) / columns) / (2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return np.asarray(1.0 / (kept + (1.0 - kept) / factor))


def _yarn(config: Config, rope: JsonObject, plain: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Pairs that turn often within the original context are kept, slow ones stretched, with a ramp between."""
    original, theta, dim = _original_positions(config, rope), _number(rope, "rope_theta"), 2 * len(plain)

    def pair(turns: float) -> float:
        """The index, as a real number, of the pair that turns so often within the original context."""
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = pair(_number(rope, "beta_fast", 32)), pair(_number(rope, "beta_slow", 1))
    if rope.get("truncate", True):
        first, last = float(math.floor(first)), float(math.ceil(last))
    first, last = max(first, 0.0), min(last, dim - 1.0)
    last += 0.001 if first == last else 0.0
    stretched = np.clip((np.arange(len(plain)) - first) / (last - first), 0, 1)
    blended: npt.NDArray[np.float64] = plain / _factor(config, rope) * stretched + plain * (1 - stretched)
    return blended


def magnitude(factor: float, scale: float = 1.0) -> float:
    """What YaRN multiplies cosine and sine with where nothing else is stated: 0.1 ln(factor) + 1."""
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def _factor(config: Config, rope: JsonObject) -> float:
    if "factor" in rope:
        return _number(rope, "factor")
    return size(config, "max_position_embeddings") / _original_positions(config, rope)


def _original_positions(config: Config, rope: JsonObject) -> float:
    key = "original_max_position_embeddings"
    if config.get(key) is not None:
        return float(size(config, key))
    return _number(rope, key) if key in rope else float(size(config, "max_position_embeddings"))


def _head_dim(config: Config) -> int:
    head = head_dim(config)
    if head % 2:
        raise _invalid("head_dim", head)
    return head


def _number(rope: JsonObject, key: str, default: float | None = None) -> float:
    """A positive finite number out of the rotary settings."""
    value = rope.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise _invalid(key, value)
    return float(value)


def _invalid(key: str, value: object) -> CheckpointError:
    return CheckpointError(
        f"config.json: {key} of the rotary embeddings is {value!r}", "restore the model's own config.json"
    )

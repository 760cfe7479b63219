"""Rotary embeddings against transformers' own, and the factor of YaRN that every export must use."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from r1quant.arch import rope
from r1quant.errors import CheckpointError
from tests import models

R1_0528: dict[str, Any] = {
    "model_type": "qwen3", "hidden_size": 4096, "num_attention_heads": 32, "head_dim": 128, "rope_theta": 1000000,
    "max_position_embeddings": 131072,
    "rope_scaling": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768, "attn_factor": 0.8782488562869419
    },
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
SCALED: tuple[dict[str, Any], ...] = (
    {"type": "linear", "factor": 2.5},
    LLAMA3,
    LLAMA3 | {"original_max_position_embeddings": 8192, "factor": 32.0},
    YARN,
    YARN | {"beta_fast": 16, "beta_slow": 2, "truncate": False},
    YARN | {"mscale": 0.707, "mscale_all_dim": 1.1},
    YARN | {"attention_factor": 1.25, "attn_factor": 3.0},
    {"type": "yarn", "factor": 40.0, "original_max_position_embeddings": 64},
)


def values_of(config: dict[str, Any]) -> tuple[np.ndarray, float]:
    """What transformers makes of it."""
    parsed = AutoConfig.for_model(**config)
    parsed.standardize_rope_params()
    frequencies, factor = ROPE_INIT_FUNCTIONS[parsed.rope_parameters["rope_type"]](parsed, torch.device("cpu"))
    return frequencies.numpy(), factor


@pytest.mark.parametrize("scaling", SCALED, ids=str)
@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_frequencies_and_factor_are_those_of_transformers(
    model_type: str, version: int, scaling: dict[str, Any]
) -> None:
    config = models.config(model_type, rope_scaling=dict(scaling))
    if version == 5:
        stated = {"rope_type": scaling.get("rope_type", scaling.get("type"))} | scaling
        stated["rope_theta"] = config.pop("rope_theta")
        config["rope_parameters"] = stated
        del config["rope_scaling"]
    expected, factor = values_of(dict(config))
    np.testing.assert_allclose(rope.inverse_frequencies(config), expected, rtol=1e-6, atol=0)
    assert rope.attention_factor(config) == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize("version", [4, 5])
def test_unscaled(version: int) -> None:
    config = models.config("llama", head_dim=32)
    if version == 5:
        config["rope_parameters"] = {"rope_type": "default", "rope_theta": config.pop("rope_theta")}
    expected = 1 / 10000 ** (np.arange(16) / 16)
    np.testing.assert_allclose(rope.inverse_frequencies(config), expected, rtol=1e-6)
    assert rope.attention_factor(config) == 1.0


def test_cosine_and_sine_are_those_of_the_library_model() -> None:
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

    config = models.config("qwen3", rope_scaling=YARN | {"attention_factor": 1.1})
    cos, sin = rope.cos_sin(config, np.arange(2048))
    rotary = Qwen3RotaryEmbedding(AutoConfig.for_model(**config))
    expected = rotary(torch.zeros(1), torch.arange(2048)[None])
    half = config["head_dim"] // 2
    for ours, theirs in zip((cos, sin), expected, strict=True):
        assert ours.dtype == np.float32 and ours.shape == (2048, half)
        np.testing.assert_allclose(ours, theirs[0, :, :half].numpy(), atol=3e-4)  # an ulp of the angle at 2048
        np.testing.assert_allclose(ours[:64], theirs[0, :64, :half].numpy(), atol=1e-5)


def test_deepseek_r1_0528_is_run_as_its_authors_meant() -> None:
    """Without attn_factor, it is what transformers does; with a stated attention_factor, that."""
    assert rope.attention_factor(R1_0528) == pytest.approx(1.0, abs=1e-9)
    scaling = dict(R1_0528["rope_scaling"])
    without = {key: value for key, value in scaling.items() if key != "attn_factor"}
    assert rope.attention_factor(R1_0528 | {"rope_scaling": without}) == 0.1 * math.log(4) + 1
    stated = scaling | {"attention_factor": 1.1386294361119891}
    assert rope.attention_factor(R1_0528 | {"rope_scaling": stated}) == 1.1386294361119891
    as_version_5 = {key: value for key, value in R1_0528.items() if key not in ("rope_scaling", "rope_theta")}
    as_version_5["rope_parameters"] = scaling | {"rope_theta": 1000000}
    assert rope.attention_factor(as_version_5) == pytest.approx(1.0, abs=1e-9)


def test_frequencies_of_deepseek_r1_0528() -> None:
    """Worked out by hand: pairs up to 23 are as trained, those from 40 on are four times slower."""
    frequencies = rope.inverse_frequencies(R1_0528)
    plain = 1000000.0 ** -(np.arange(64) / 64)
    assert frequencies.shape == (64,)
    np.testing.assert_allclose(frequencies[:24], plain[:24], rtol=1e-6)
    np.testing.assert_allclose(frequencies[40:], plain[40:] / 4, rtol=1e-6)
    np.testing.assert_allclose(frequencies[32], plain[32] * (1 - 9 / 17 * 0.75), rtol=1e-6)
    np.testing.assert_array_equal(frequencies, rope.inverse_frequencies({**R1_0528, "rope_scaling": {
        **R1_0528["rope_scaling"], "beta_fast": 32, "beta_slow": 1}}))  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"rope_scaling": {"rope_type": "longrope", "factor": 4.0}}, "longrope"),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "dynamic"),
        ({"rope_scaling": {"type": ["yarn"]}}, "yarn"),
        ({"rope_scaling": "yarn"}, "rope_scaling"),
        ({"rope_scaling": {"type": "linear"}}, "factor"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor"),
        ({"rope_scaling": YARN | {"factor": "four"}}, "factor"),
        ({"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}}, "high_freq_factor"),
        ({"rope_theta": -1.0}, "rope_theta"),
        ({"head_dim": 15}, "head_dim"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ],
)
def test_what_is_not_supported_is_refused(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(CheckpointError, match=word):
        rope.cos_sin(models.config("llama", **changes), np.arange(4))

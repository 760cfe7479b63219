"""The roofline: sizes that agree with real files and published figures, and laws that hold for any card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import r1quant
from r1quant.arch.kvcache import Cache
from r1quant.arch.tables import architecture_of
from r1quant.checkpoint.artifact import LinearSpec
from r1quant.errors import RecipeError
from r1quant.hardware.cards import Card, card
from r1quant.hardware.memory import MEMORY_SHARE, RUNTIME_BYTES
from r1quant.hardware.roofline import (
    BANDWIDTH_SHARE,
    COMPUTE_SHARE,
    LAYER_SECONDS,
    Modelled,
    Sizes,
    model,
    sizes,
    stored_bits,
)
from r1quant.jobs.artifacts import open_artifact

LLAMA_8B: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False,
}  # fmt: skip
QWEN_1_5B: dict[str, Any] = {
    "model_type": "qwen2", "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
    "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
}  # fmt: skip
EIGHT = sizes(LLAMA_8B, architecture_of(LLAMA_8B))


def w4(config: dict[str, Any]) -> dict[str, LinearSpec]:
    """All linears of the layers in 4 bits, groups of 128."""
    arch = architecture_of(config)
    return {
        name.removesuffix(".weight"): LinearSpec((shape[0], shape[1]), 4, 128, (8, 8))
        for name, shape in arch.shapes(config).items()
        if "layers" in name and len(shape) == 2
    }


def test_published_parameter_counts_and_cache_sizes() -> None:
    assert EIGHT.weights_bytes == 2 * 8_030_261_248
    assert EIGHT.kv_bytes == 131_072
    assert EIGHT.weights_bytes - EIGHT.streamed_bytes == 2 * 128256 * 4096
    tied = sizes(QWEN_1_5B, architecture_of(QWEN_1_5B))
    assert tied.weights_bytes == tied.streamed_bytes == 2 * 1_543_714_304
    assert tied.kv_bytes == 28_672
    assert sizes(LLAMA_8B, architecture_of(LLAMA_8B), kv_bits=8).kv_bytes == 65_536


def test_sizes_are_those_of_the_files(tmp_path: Path) -> None:
    """Of tiny-r1 to the byte in float, and in 4 bits but for the group maps that the format adds."""
    float_model = open_artifact("tiny-r1")
    arch = architecture_of(float_model.config)
    stored = sum(spec.nbytes for spec in float_model.tensors.values())
    assert sizes(float_model.config, arch).weights_bytes == stored
    out = r1quant.quantize("tiny-r1", tmp_path / "out", bits=4, group_size=64, method="rtn").out
    quantized = open_artifact(out)
    found = sizes(quantized.config, arch, quantized.linear_specs).weights_bytes
    assert found <= (out / "model.safetensors").stat().st_size <= 1.2 * found
    assert sizes(quantized.config, arch).weights_bytes == stored


def test_bits_of_a_quantized_weight() -> None:
    assert stored_bits(LinearSpec((8, 256), 4, 128, (8, 8))) == 4 + 16 / 128
    assert stored_bits(LinearSpec((8, 256), 4, 128, (0, 15))) == 4 + 20 / 128
    assert stored_bits(LinearSpec((8, 256), 8, -1, (128, 128))) == 8 + 16 / 256


def test_one_step_by_hand() -> None:
    """Round figures: 1000 bytes of weights and 10 of cache a token, on a card of 1000 bytes a second."""
    of = Sizes(1200, 1000, 0, 300, 100, Cache(5), 0)
    slow_memory = Card("slow memory", 1 << 40, 1000.0, 1e30, 0)
    found = model(of, slow_memory, 20, 20, batch=2)
    step = (1000 + 2 * 30 * 10) / (1000 * BANDWIDTH_SHARE)
    assert found.decode_tokens_per_second == pytest.approx(2 / step)
    assert found.ttft_seconds == pytest.approx(1000 / (1000 * BANDWIDTH_SHARE))
    assert found.kv_bytes == 2 * 40 * 10 and found.total_bytes == 1200 + 800 + RUNTIME_BYTES
    slow_compute = Card("slow compute", 1 << 40, 1e30, 1000.0, 0)
    found = model(of, slow_compute, 20, 20, batch=2)
    assert found.decode_tokens_per_second == pytest.approx(1000 * COMPUTE_SHARE / (2 * 400))
    assert found.ttft_seconds == pytest.approx(2 * (20 * 600 + 200) / (1000 * COMPUTE_SHARE))
    assert found.prefill_tokens_per_second == pytest.approx(2 * 20 / found.ttft_seconds)


def test_attention_is_counted() -> None:
    of = Sizes(10, 10, 0, 100, 0, Cache(1), 7)
    found = model(of, Card("slow", 1 << 40, 1e30, 1000.0, 0), 30, 2)
    assert found.ttft_seconds == pytest.approx((30 * 200 + 2 * 7 * 30 * 30) / (1000 * COMPUTE_SHARE))
    assert found.decode_tokens_per_second == pytest.approx(1000 * COMPUTE_SHARE / (200 + 4 * 7 * 31))


def test_no_model_is_faster_than_its_launches() -> None:
    found = model(Sizes(1, 1, 30, 1, 1, Cache(1), 1), card("H200"), 1, 2)
    assert found.decode_tokens_per_second == pytest.approx(1 / (30 * LAYER_SECONDS), rel=1e-3)
    assert found.ttft_seconds == pytest.approx(30 * LAYER_SECONDS, rel=1e-3)


def test_what_fits_and_how_long_a_context() -> None:
    known = card("RTX 3060 12GB")
    floats = model(EIGHT, known, 512, 128)
    assert not floats.fits and floats.max_context == 0
    small = sizes(LLAMA_8B, architecture_of(LLAMA_8B), w4(LLAMA_8B))
    found = model(small, known, 512, 128)
    assert found.fits and found.total_bytes <= known.memory_bytes * MEMORY_SHARE
    for batch in (1, 4, 3000):
        reached = model(small, known, 512, 128, batch=batch).max_context
        for tokens, fits in ((reached, True), (reached + 1, False)):
            assert tokens < 4 or model(small, known, tokens - 2, 2, batch=batch).fits is fits
    for context in (16, 640, 30_000):
        most = model(small, known, context - 8, 8).max_batch
        for batch, fits in ((most, True), (most + 1, False)):
            assert model(small, known, context - 8, 8, batch=batch).fits is fits


def test_quantized_decodes_faster_and_no_card_beats_its_roof() -> None:
    known = card("A100 40GB")
    small = sizes(LLAMA_8B, architecture_of(LLAMA_8B), w4(LLAMA_8B))
    one, four = (model(of, known, 512, 128) for of in (EIGHT, small))
    ratio = four.decode_tokens_per_second / one.decode_tokens_per_second
    assert 2 < ratio < EIGHT.streamed_bytes / small.streamed_bytes
    assert EIGHT.layers == 32
    assert one.prefill_tokens_per_second == pytest.approx(four.prefill_tokens_per_second)
    assert 60 < one.decode_tokens_per_second < known.bandwidth / EIGHT.streamed_bytes
    many = model(EIGHT, known, 512, 128, batch=8)
    assert one.decode_tokens_per_second < many.decode_tokens_per_second < 8 * one.decode_tokens_per_second


def test_a_missing_precision_is_refused() -> None:
    found: Modelled = model(EIGHT, card("T4"), 8, 8)
    assert found.card == "T4"
    with pytest.raises(RecipeError, match="the T4 has no bfloat16"):
        model(EIGHT, card("T4"), 8, 8, dtype="bfloat16")
    with pytest.raises(RecipeError, match="dtype 'int4' is not supported"):
        model(EIGHT, card("T4"), 8, 8, dtype="int4")

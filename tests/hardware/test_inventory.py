"""Parameters and caches from config.json alone: the figures that the makers of well-known models publish."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from r1quant.arch.kvcache import cache_of
from r1quant.checkpoint.resolve import open_model
from r1quant.checkpoint.safetensors import open_folder
from r1quant.checkpoint.tensorfile import TensorSpec
from r1quant.errors import CheckpointError
from r1quant.hardware.inventory import of_config, of_headers
from tests import models
from tests.configs import DEEPSEEK_V3, GEMMA2_9B, MISTRAL_7B, MIXTRAL, QWEN3_30B, R1_QWEN3_8B


@pytest.mark.parametrize(
    ("config", "parameters", "active"),
    [
        (R1_QWEN3_8B, 8_190_735_360, None),
        (MISTRAL_7B, 7_241_732_096, None),
        (GEMMA2_9B, 9_241_705_984, None),
        (MIXTRAL, 46_702_792_704, 12.9e9),
        (QWEN3_30B, 30_532_122_624, 3.35e9),
        (DEEPSEEK_V3, 671_026_419_200, 37.6e9),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else "",
)
def test_published_counts(config: dict[str, Any], parameters: int, active: float | None) -> None:
    found = of_config(config)
    assert found.parameters == parameters and not found.note
    if active is not None:
        count, taken = found.experts
        passed = sum(part.numbers * (taken / count if part.expert else 1) for part in found.parts)
        assert passed == pytest.approx(active, rel=0.02)


@pytest.mark.parametrize("model_type", models.MODEL_TYPES)
@pytest.mark.parametrize("tied", [False, True])
def test_config_and_headers_say_the_same(model_type: str, tied: bool, tmp_path: Path) -> None:
    folder = models.write_model(tmp_path / "model", model_type, tied=tied)
    checkpoint = open_folder(folder)
    headers = of_headers(checkpoint.config, [TensorSpec(i.name, i.dtype, i.shape) for i in checkpoint.tensors.values()])
    config = of_config(checkpoint.config)
    assert sorted(headers.parts, key=str) == sorted(config.parts, key=str)
    assert headers.tied == config.tied == tied
    assert headers.parameters == sum(i.nbytes // 2 for i in checkpoint.tensors.values())
    assert headers.dtype == "BF16"


def test_a_family_that_is_not_known_is_counted_by_its_headers_or_estimated_and_so_said() -> None:
    tiny = open_model("tiny-r1")
    specs = [TensorSpec(info.name, info.dtype, info.shape) for info in tiny.tensors.values()]
    known = of_headers(tiny.config, specs)
    foreign = {**tiny.config, "model_type": "brand_new"}
    counted = of_headers(foreign, specs)
    assert {(part.role, part.shape, part.count) for part in counted.parts} == {
        (part.role, part.shape, part.count) for part in known.parts
    }
    assert "'brand_new' cannot be quantized yet" in counted.note and "\n" not in counted.note
    estimated = of_config(foreign)
    assert "'brand_new' is not known" in estimated.note
    assert estimated.parameters == pytest.approx(known.parameters, rel=1e-3)
    with pytest.raises(CheckpointError, match="num_hidden_layers"):
        of_config({"model_type": "brand_new"})


def test_what_is_quantized_already_is_taken_as_before_that_and_text_models_out_of_larger_ones() -> None:
    again = of_headers(R1_QWEN3_8B, [TensorSpec("model.layers.0.self_attn.q_proj.qweight", "I32", (512, 4096))])
    assert again.parameters == 8_190_735_360 and "quantized already" in again.note
    assert of_config({"model_type": "seeing", "text_config": R1_QWEN3_8B}).parameters == 8_190_735_360


@pytest.mark.parametrize(
    ("config", "tokens", "numbers"),
    [
        (R1_QWEN3_8B, 1, 147_456 // 2),
        (R1_QWEN3_8B, 131_072, 131_072 * 73_728),
        (DEEPSEEK_V3, 1000, 1000 * 61 * (512 + 64)),
        (MISTRAL_7B, 4096, 4096 * 65_536),
        (MISTRAL_7B, 32_768, 4096 * 65_536),
        (GEMMA2_9B, 8192, 8192 * 21 * 4096 + 4096 * 21 * 4096),
        ({**MIXTRAL, "sliding_window": 100}, 1000, 100 * 65_536),
        ({**R1_QWEN3_8B, "use_sliding_window": True, "sliding_window": 10, "max_window_layers": 30}, 100,
         (100 * 30 + 10 * 6) * 2048),
        ({**MISTRAL_7B, "model_type": "gpt_oss", "layer_types": ["sliding_attention", "full_attention"] * 16,
          "sliding_window": 128}, 1000, (128 + 1000) * 16 * 2048),
        ({**R1_QWEN3_8B, "model_type": "qwen3_next",
          "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 9},
         100, 100 * 9 * 2048),
    ],
)  # fmt: skip
def test_numbers_in_the_cache(config: dict[str, Any], tokens: int, numbers: int) -> None:
    cache = cache_of(config)
    assert cache.numbers(tokens) == numbers
    if cache.full:
        assert cache.longest(numbers) == pytest.approx(tokens)


def test_the_longest_text_is_the_inverse_also_inside_windows() -> None:
    cache = cache_of(GEMMA2_9B)
    for tokens in (1, 100, 4095, 4096, 4097, 100_000):
        assert cache.longest(cache.numbers(tokens)) == pytest.approx(tokens)
    assert cache_of(MISTRAL_7B).longest(1e12) == float("inf")

"""What can be chosen, and what is refused before a weight is read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from r1quant.arch.tables import architecture_of
from r1quant.checkpoint.artifact import LinearSpec
from r1quant.errors import CheckpointError, NumericError, RecipeError
from r1quant.formats.onnx.dimensions import Dimensions
from r1quant.formats.onnx.options import OnnxOptions, block_size, problem, stored_bits
from r1quant.formats.onnx.writer import write
from tests import models
from tests.formats.onnx.memory import decoder


@pytest.mark.parametrize(
    "options",
    [
        {"style": "fast"}, {"dtype": "bfloat16"}, {"accuracy_level": 5}, {"accuracy_level": True}, {"embedding": "q4"},
        {"head": None}, {"threads": -1}, {"zero_points": 1}, {"style": "qdq", "head": "q8"}, {"accuracy_level": 1.0},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_not_possible_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        OnnxOptions(**options)


@pytest.mark.parametrize(
    ("spec", "options", "word"),
    [
        (LinearSpec((8, 64), 4, 32, (8, 8)), OnnxOptions(), None),
        (LinearSpec((8, 64), 4, None, (8, 8)), OnnxOptions(), "act-order"),
        (LinearSpec((8, 64), 4, 8, (8, 8)), OnnxOptions(), "groups of 8 columns"),
        (LinearSpec((8, 64), 4, 32, (8, 8), 12), OnnxOptions(), None),
        (LinearSpec((8, 64), 4, 32, (8, 8), 12), OnnxOptions(dtype="float16"), "float16"),
        (LinearSpec((8, 75), 8, -1, (0, 255)), OnnxOptions(style="qdq"), None),
    ],
)
def test_what_a_linear_needs(spec: LinearSpec, options: OnnxOptions, word: str | None) -> None:
    reason = problem(spec, options)
    assert (reason is None) == (word is None) and (word or "") in (reason or "")


@pytest.mark.parametrize(
    ("group_size", "columns", "expected"),
    [(16, 64, 16), (48, 96, 16), (96, 192, 32), (128, 256, 128), (512, 1024, 256), (-1, 4096, 256), (-1, 576, 64),
     (-1, 50, 64), (-1, 16, 16)],
)  # fmt: skip
def test_blocks(group_size: int, columns: int, expected: int) -> None:
    assert block_size(LinearSpec((8, columns), 4, group_size, (8, 8)), OnnxOptions()) == expected


@pytest.mark.parametrize(
    ("bits", "level", "style", "expected"),
    [(2, 4, "matmulnbits", (2, 1)), (2, 1, "matmulnbits", (4, 1)), (3, 4, "matmulnbits", (4, 1)),
     (8, 4, "matmulnbits", (8, 1)), (8, 0, "matmulnbits", (8, 1)), (8, 1, "matmulnbits", (4, 2)),
     (5, 1, "matmulnbits", (4, 2)), (2, 1, "qdq", (4, 1)), (8, 1, "qdq", (8, 1))],
)  # fmt: skip
def test_widths(bits: int, level: int, style: Any, expected: tuple[int, int]) -> None:
    spec = LinearSpec((8, 64), bits, 32, (1 << bits - 1, 1 << bits - 1))
    assert stored_bits(spec, OnnxOptions(style=style, accuracy_level=level)) == expected


def test_wide_scales_are_not_split_into_planes() -> None:
    """float32 would round a code times such a scale, once in each plane."""
    assert stored_bits(LinearSpec((8, 64), 8, 32, (128, 128), 24), OnnxOptions()) == (8, 1)


def test_refused_when_written(tmp_path: Path) -> None:
    artifact = decoder("llama")
    arch = architecture_of(artifact.config)
    norm = "model.norm.weight"
    cases: list[tuple[Any, OnnxOptions, type[Exception], str]] = [
        (replace(artifact, floats={n: a for n, a in artifact.floats.items() if n != norm}), OnnxOptions(),
         CheckpointError, "model.norm.weight is missing"),
        (replace(artifact, floats=dict(artifact.floats) | {norm: np.ones(3, np.float32)}), OnnxOptions(),
         CheckpointError, "implies"),
        (replace(artifact, floats=dict(artifact.floats) | {"extra.weight": np.ones(3, np.float32)}), OnnxOptions(),
         CheckpointError, "extra.weight"),
        (replace(artifact, floats=dict(artifact.floats) | {norm: np.full(64, np.nan, np.float32)}), OnnxOptions(),
         NumericError, "NaN"),
        (replace(artifact, floats=dict(artifact.floats) | {norm: np.full(64, 1e6, np.float32)}),
         OnnxOptions(dtype="float16"), NumericError, "float16"),
        (replace(artifact, config=dict(artifact.config) | {"hidden_act": "gelu"}), OnnxOptions(),
         CheckpointError, "gelu"),
    ]  # fmt: skip
    for number, (changed, options, kind, word) in enumerate(cases):
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.raises(kind, match=word):
            write(changed, arch, folder, options)
        assert not list(folder.iterdir())


@pytest.mark.parametrize(
    ("model_type", "config", "expected"),
    [
        ("llama", {"sliding_window": 9}, (None, None)),
        ("mistral", {}, (None, None)),
        ("mistral", {"sliding_window": 9}, (9, 9)),
        ("qwen2", {"sliding_window": 9}, (None, None)),
        ("qwen2", {"sliding_window": 9, "use_sliding_window": True, "max_window_layers": 1}, (None, 9)),
        ("qwen3", {"sliding_window": 9, "use_sliding_window": True, "max_window_layers": 0}, (9, 9)),
        ("qwen3", {"sliding_window": 9, "use_sliding_window": True,
                   "layer_types": ["sliding_attention", "full_attention"]}, (9, None)),
    ],
)  # fmt: skip
def test_sliding_windows(model_type: str, config: dict[str, Any], expected: tuple[int | None, ...]) -> None:
    """As transformers decides it."""
    from transformers import AutoConfig

    values = models.config(model_type, **config)
    assert Dimensions.of(values).windows == expected
    if model_type.startswith("qwen"):
        parsed = AutoConfig.for_model(**values)
        kinds = tuple(parsed.sliding_window if kind == "sliding_attention" else None for kind in parsed.layer_types)
        assert kinds == expected

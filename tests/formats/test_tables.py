"""Embedding and head as integers in safetensors: written, read back, and loaded by transformers where it can."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import r1quant
from r1quant.arch.tables import is_tied
from r1quant.checkpoint.artifact import LinearSpec
from r1quant.checkpoint.safetensors import open_folder
from r1quant.core.qlinear import QLinear
from r1quant.errors import RecipeError
from r1quant.formats.codec import table_problem
from r1quant.formats.table import CODECS, artifact
from r1quant.jobs.artifacts import open_artifact
from r1quant.registry import FORMATS, TABLES
from tests.formats.onnx.memory import random_linear
from tests.laws.linears import same
from tests.models import write_model

EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
# name, bits of the layers, bits of the tables, tables
KINDS: tuple[tuple[str, int, int, tuple[str, ...]], ...] = (
    ("gptq", 4, 8, (HEAD,)),
    ("gptq", 4, 4, (HEAD,)),
    ("gptq-v2", 3, 8, (HEAD,)),
    ("compressed-tensors", 4, 8, (HEAD,)),
    ("compressed-tensors", 4, 4, (HEAD,)),
    ("compressed-tensors", 4, 8, (EMBEDDING, HEAD)),
    ("compressed-tensors", 4, 4, (EMBEDDING,)),
    ("compressed-tensors-int", 8, 8, (EMBEDDING, HEAD)),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tables") / "llama", "llama")


def with_tables(
    folder: Path, model: Path, name: str, bits: int, table_bits: int, tables: tuple[str, ...]
) -> dict[str, QLinear]:
    """Writes a checkpoint whose matrices are random integers. Returns these."""
    source, codec, rng = open_folder(model), CODECS[name], np.random.default_rng(0)
    tensors, linears = {}, {}
    for tensor in source.tensors:
        linear, weight = tensor.removesuffix(".weight"), source.read(tensor)
        if not linear.endswith("_proj") and linear not in tables:
            tensors[tensor] = weight
            continue
        width = table_bits if linear in tables else bits
        q = linears[linear] = random_linear((weight.shape[0], weight.shape[1]), width, 32, rng)
        tensors |= {f"{linear}.{suffix}": torch.from_numpy(array) for suffix, array in codec.encode(q).items()}
    plain = tuple({HEAD} - set(tables))
    quant_config = codec.quant_config({name: LinearSpec.of(q) for name, q in linears.items()}, plain, {})
    folder.mkdir()
    config = json.loads((model / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quant_config}))
    (folder / "tokenizer.json").write_bytes((model / "tokenizer.json").read_bytes())
    save_file(
        {key: value.contiguous() for key, value in tensors.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    return linears


@pytest.mark.parametrize(("name", "bits", "table_bits", "tables"), KINDS)
def test_tables_come_back(
    name: str, bits: int, table_bits: int, tables: tuple[str, ...], model: Path, tmp_path: Path
) -> None:
    linears = with_tables(tmp_path / "out", model, name, bits, table_bits, tables)
    ours = artifact(open_folder(tmp_path / "out"))
    assert ours.linear_specs.keys() == linears.keys() and set(tables) <= linears.keys()
    for linear, q in linears.items():
        assert same(ours.qlinear(linear), q)
        assert ours.tensors[f"{linear}.weight"].shape == q.shape


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(torch.arange(12)[None]).logits
    return result


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`:UserWarning")
@pytest.mark.parametrize(
    ("name", "bits", "table_bits", "tables", "dequantized"),
    [
        ("compressed-tensors", 4, 8, (HEAD,), False),
        ("compressed-tensors", 4, 4, (HEAD,), False),
        ("compressed-tensors-int", 8, 8, (EMBEDDING, HEAD), False),
        ("compressed-tensors", 4, 4, (EMBEDDING, HEAD), True),  # else it looks for the weight of a packed embedding
    ],
)
def test_transformers_computes_with_them(
    name: str, bits: int, table_bits: int, tables: tuple[str, ...], dequantized: bool, model: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    linears = with_tables(tmp_path / "out", model, name, bits, table_bits, tables)
    told = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if dequantized else {}
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32, **told)
    expected = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        for linear, q in linears.items():
            expected.get_submodule(linear).weight.copy_(torch.from_numpy(q.dequantize()))
    assert torch.equal(logits(theirs), logits(expected))


def test_which_format_holds_which_table() -> None:
    held = {name: [table for table in TABLES if not table_problem(name, table, tied=False)] for name in FORMATS}
    assert held == {
        "gptq": ["head"], "gptq-v2": ["head"], "awq": [], "compressed-tensors": [*TABLES],
        "compressed-tensors-int": [*TABLES], "safetensors": [], "onnx": [*TABLES], "gguf": [*TABLES],
    }  # fmt: skip
    tied = [name for name in FORMATS if not table_problem(name, "head", tied=True)]
    assert tied == ["onnx", "gguf"]
    assert "one tensor" in str(table_problem("compressed-tensors", "embedding", tied=True))
    assert "in floats only" in str(table_problem("awq", "head", tied=False))


@pytest.mark.parametrize("to", ["onnx", "compressed-tensors"])
def test_tables_are_exported_as_they_are(to: str, model: Path, tmp_path: Path) -> None:
    linears = with_tables(tmp_path / "m", model, "compressed-tensors", 4, 8, (EMBEDDING, HEAD))
    written = r1quant.export(tmp_path / "m", to, tmp_path / "out").written[0]
    assert not written.inexact and r1quant.check(tmp_path / "m", written.path).identical
    back = open_artifact(written.path)
    for table in (EMBEDDING, HEAD):
        again = back.qlinear(table)
        assert isinstance(again, QLinear) and same(again, linears[table])


def test_gguf_has_the_same_numbers(model: Path, tmp_path: Path) -> None:
    """As floats: a uniform table is not among what is written there as blocks."""
    with_tables(tmp_path / "m", model, "compressed-tensors", 4, 8, (EMBEDDING, HEAD))
    written = r1quant.export(tmp_path / "m", "gguf", tmp_path / "out").written[0]
    assert not written.inexact and r1quant.check(tmp_path / "m", written.path).identical


def test_an_embedding_becomes_floats_if_a_format_holds_no_other(model: Path, tmp_path: Path) -> None:
    linears = with_tables(tmp_path / "m", model, "compressed-tensors", 4, 8, (EMBEDDING, HEAD))
    written = r1quant.export(tmp_path / "m", "gptq", tmp_path / "out", dtype="float32").written[0]
    back = open_artifact(written.path)
    assert EMBEDDING not in back.linear_specs and same(back.qlinear(HEAD), linears[HEAD])  # type: ignore[arg-type]
    assert np.array_equal(back.read(f"{EMBEDDING}.weight").numpy(), linears[EMBEDDING].dequantize())


def test_awq_refuses_a_head(model: Path, tmp_path: Path) -> None:
    with_tables(tmp_path / "m", model, "gptq", 4, 4, (HEAD,))
    with pytest.raises(RecipeError, match="awq cannot hold lm_head: awq holds the head in floats only"):
        r1quant.export(tmp_path / "m", "awq", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_head_beside_a_tied_embedding_is_refused(model: Path, tmp_path: Path) -> None:
    """Readers would take the embedding for it, without a word."""
    with_tables(tmp_path / "m", model, "gptq", 4, 4, (HEAD,))
    path = tmp_path / "m" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "tie_word_embeddings": True}))
    assert is_tied(open_artifact(tmp_path / "m").config)
    with pytest.raises(RecipeError, match="one tensor"):
        r1quant.export(tmp_path / "m", "compressed-tensors", tmp_path / "out")


def test_a_tied_embedding_in_integers_goes_from_onnx_to_floats(tmp_path: Path) -> None:
    from r1quant.arch.tables import architecture_of
    from r1quant.formats.onnx.options import OnnxOptions
    from r1quant.formats.onnx.writer import write
    from tests.formats.onnx.test_tables import with_tables as in_memory

    source = in_memory(8, 32, True, tied=True)
    (tmp_path / "m").mkdir()
    write(source, architecture_of(source.config), tmp_path / "m", OnnxOptions())
    for to in ("gptq", "compressed-tensors"):
        written = r1quant.export(tmp_path / "m", to, tmp_path / to, dtype="float32").written[0]
        back = open_artifact(written.path)
        assert EMBEDDING not in back.linear_specs
        assert np.array_equal(back.read(f"{EMBEDDING}.weight").numpy(), source.linears[EMBEDDING].dequantize())

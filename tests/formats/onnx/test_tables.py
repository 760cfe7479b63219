"""Embedding and head on the uniform grid: looked up and multiplied as the integers they are, and read back as such."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from r1quant.formats.onnx.read import open_onnx
from tests.formats.onnx.memory import Memory, Session, decoder, random_linear, reference
from tests.formats.onnx.test_read import written
from tests.laws.linears import same

EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
KINDS = ((2, 16, True), (3, 32, False), (4, 32, True), (4, -1, False), (8, 32, True), (8, -1, True), (8, 64, False))


def with_tables(
    bits: int,
    group_size: int,
    symmetric: bool,
    tied: bool = False,
    tables: tuple[str, ...] = (EMBEDDING, HEAD),
    **config: Any,
) -> Memory:
    """A tiny model whose linears have 4 bits, and its tables others."""
    model = decoder("llama", 4, 16, tied=tied, **config)
    rng, floats, linears = np.random.default_rng(2), dict(model.floats), dict(model.linears)
    for name in tables:
        if f"{name}.weight" in floats:
            shape = floats.pop(f"{name}.weight").shape
            linears[name] = random_linear((shape[0], shape[1]), bits, group_size, rng, symmetric)
    return replace(model, floats=floats, linears=linears)


def assert_computed(artifact: Memory, folder: Path) -> None:
    tokens = np.random.default_rng(3).integers(0, artifact.config["vocab_size"], 9)
    with torch.no_grad():
        expected = reference(artifact)(torch.from_numpy(tokens)[None]).logits[0].numpy()
    np.testing.assert_allclose(Session(folder).scores(tokens), expected, atol=2e-5 * float(np.abs(expected).max()))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("bits", "group_size", "symmetric"), KINDS)
def test_tables_come_back_and_compute(tmp_path: Path, bits: int, group_size: int, symmetric: bool, tied: bool) -> None:
    artifact = with_tables(bits, group_size, symmetric, tied)
    folder = written(tmp_path, artifact)
    back = open_onnx(folder)
    assert not back.places.inexact
    assert dict(back.linear_specs) == dict(artifact.linear_specs)
    assert {n: s.shape for n, s in back.tensors.items()} == {n: s.shape for n, s in artifact.tensors.items()}
    for name in {EMBEDDING, HEAD} & artifact.linears.keys():
        assert same(back.qlinear(name), artifact.linears[name])
    assert_computed(artifact, folder)


@pytest.mark.parametrize(("bits", "group_size"), [(4, 128), (8, 256), (2, -1), (3, 256)])
def test_wide_blocks(tmp_path: Path, bits: int, group_size: int) -> None:
    artifact = with_tables(bits, group_size, False, hidden_size=256, head_dim=16)
    folder = written(tmp_path, artifact)
    assert same(open_onnx(folder).qlinear(EMBEDDING), artifact.linears[EMBEDDING])
    assert_computed(artifact, folder)


def test_scales_of_half_precision(tmp_path: Path) -> None:
    artifact = with_tables(4, 32, False)
    back = open_onnx(written(tmp_path, artifact, dtype="float16"))
    for name in (EMBEDDING, HEAD):
        assert same(back.qlinear(name), artifact.linears[name])


def test_a_row_that_fills_no_block(tmp_path: Path) -> None:
    artifact = with_tables(4, -1, True, hidden_size=80, head_dim=16)
    folder = written(tmp_path, artifact)
    assert same(open_onnx(folder).qlinear(EMBEDDING), artifact.linears[EMBEDDING])
    assert_computed(artifact, folder)


@pytest.mark.parametrize("tied", [False, True])
def test_no_floats_are_written_beside_the_integers(tmp_path: Path, tied: bool) -> None:
    """Tied, embedding and head are the same bytes."""
    folder = written(tmp_path, with_tables(4, 32, True, tied), embedding="q8", head="q8")
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    names = {tensor.name for tensor in model.graph.initializer}
    assert (
        not {f"{name}.{suffix}" for name in (EMBEDDING, HEAD) for suffix in ("weight", "codes", "weight.codes")} & names
    )
    assert [node.op_type for node in model.graph.node].count("GatherBlockQuantized") == 1
    assert (f"{HEAD}.qweight" in names) is not tied


@pytest.mark.parametrize("table", [EMBEDDING, HEAD])
def test_one_table_alone(tmp_path: Path, table: str) -> None:
    artifact = with_tables(8, 32, True, tables=(table,))
    folder = written(tmp_path, artifact)
    assert same(open_onnx(folder).qlinear(table), artifact.linears[table])
    assert_computed(artifact, folder)


@pytest.mark.parametrize("options", [{"zero_points": True}, {"accuracy_level": 0}], ids=str)
@pytest.mark.parametrize("tied", [False, True])
def test_options_change_no_integer(tmp_path: Path, tied: bool, options: dict[str, Any]) -> None:
    artifact = with_tables(8, 32, True, tied)
    folder = written(tmp_path, artifact, **options)
    assert same(open_onnx(folder).qlinear(EMBEDDING), artifact.linears[EMBEDDING])
    assert_computed(artifact, folder)


def test_standard_operators_look_up_exact_floats(tmp_path: Path) -> None:
    artifact = with_tables(4, 32, True)
    folder = written(tmp_path, artifact, style="qdq")
    back = open_onnx(folder)
    assert EMBEDDING not in back.linear_specs and same(back.qlinear(HEAD), artifact.linears[HEAD])
    assert np.array_equal(back.read(f"{EMBEDDING}.weight").numpy(), artifact.linears[EMBEDDING].dequantize())
    assert_computed(artifact, folder)

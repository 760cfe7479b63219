"""Law 1 for ONNX: what is stored is the linear, by an unpacker of its own, by onnxruntime, and when read back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from r1quant.checkpoint.artifact import LinearSpec
from r1quant.core.qlinear import QLinear
from r1quant.formats.codec import as_stored_scale
from r1quant.formats.onnx.contrib import Contrib
from r1quant.formats.onnx.dimensions import Dimensions
from r1quant.formats.onnx.graph import Graph
from r1quant.formats.onnx.layout import BlockLayout, decode, encode
from r1quant.formats.onnx.options import BLOCK_SIZES, OnnxOptions, problem
from r1quant.formats.onnx.standard import Standard
from r1quant.formats.onnx.weights import Weights
from tests import models
from tests.formats.onnx.memory import Memory, random_linear
from tests.laws.linears import linears, same

OPTIONS = (
    OnnxOptions(style="matmulnbits", accuracy_level=1, zero_points=False, dtype="float32"),
    OnnxOptions(style="matmulnbits", accuracy_level=4, zero_points=False, dtype="float32"),
    OnnxOptions(style="matmulnbits", accuracy_level=4, zero_points=True, dtype="float16"),
    OnnxOptions(style="matmulnbits", accuracy_level=0, zero_points=True, dtype="float32"),
    OnnxOptions(style="qdq", accuracy_level=1, zero_points=False, dtype="float32"),
    OnnxOptions(style="qdq", accuracy_level=4, zero_points=False, dtype="float16"),
)


def exact(q: QLinear) -> npt.NDArray[np.float64]:
    """Its values, one by one, nothing rounded."""
    difference = q.codes.astype(np.float64) - q.zero.astype(np.float64)[:, q.group]
    return np.asarray(difference * q.scale.astype(np.float64)[:, q.group])


def field_of(stored: npt.NDArray[np.uint8], width: int, count: int) -> list[int]:
    """`count` integers of `width` bits out of one little-endian number."""
    number = int.from_bytes(stored.tobytes(), "little")
    return [number >> width * i & (1 << width) - 1 for i in range(count)]


def by_definition(arrays: dict[str, npt.NDArray[Any]], layout: BlockLayout) -> npt.NDArray[np.float64]:
    """The weights as the operators' documentation says, [out, in]."""
    out, columns = layout.shape
    width, block = layout.width, layout.block
    blocks = -(-columns // block)
    scales = arrays["scales"].astype(np.float64)
    if layout.style == "qdq":
        codes = np.array(field_of(arrays["qweight"], width, columns * out)).reshape(columns, out)
        if "qzeros" in arrays:
            zeros = np.array(field_of(arrays["qzeros"], width, blocks * out)).reshape(blocks, out)
        else:
            codes, zeros = np.where(codes >= 1 << width - 1, codes - (1 << width), codes), np.zeros((blocks, out))
        index = np.arange(columns) // block
        return np.asarray(((codes - zeros[index]) * scales[index]).T)
    rows = []
    for row in range(len(arrays["qweight"])):
        fields = np.concatenate([field_of(part, width, block) for part in arrays["qweight"][row]])[:columns]
        zero = np.full(blocks, 1 << width - 1)
        if "qzeros" in arrays:
            zero = np.array(field_of(arrays["qzeros"][row], width, blocks))
        index = np.arange(columns) // block
        rows.append((fields - zero[index]) * scales[row, index])
    return np.asarray(np.array(rows).reshape(-1, out, columns).sum(0))  # of planes, if there are several


@settings(max_examples=120, deadline=None)
@given(linears(), st.sampled_from(OPTIONS))
def test_what_is_stored_is_the_linear(q: QLinear, options: OnnxOptions) -> None:
    spec = LinearSpec.of(q)
    reason = problem(spec, options)
    if reason:
        irregular = spec.group_size is None
        assert irregular or (options.dtype == "float16" and q.scale.dtype == np.float32), reason
        return
    layout = BlockLayout.of(spec, options)
    arrays = encode(q, layout)
    assert np.array_equal(by_definition(arrays, layout), exact(q))
    if layout.style == "matmulnbits":
        assert {name: array.shape for name, array in arrays.items()} == layout.shapes
        assert layout.block in BLOCK_SIZES
        assert spec.group_size == -1 or (spec.group_size is not None and spec.group_size % layout.block == 0)
    again = decode(arrays, layout)
    assert same(replace(again, scale=as_stored_scale(again.scale)), replace(q, scale=as_stored_scale(q.scale)))


def test_golden_matmulnbits() -> None:
    """out 2, in 32, blocks of 16: low bits first, zero points of a row in a byte."""
    codes = np.tile(np.arange(16, dtype=np.uint8), (2, 2))
    scale = np.array([[1, 2], [-3, 0.5]], np.float16)
    group = (np.arange(32) // 16).astype(np.int32)
    q = QLinear(codes, scale, np.array([[1, 2], [15, 0]], np.uint8), group, 4)
    arrays = encode(q, BlockLayout.of(LinearSpec.of(q), OnnxOptions()))
    assert arrays["qweight"].tobytes().hex() == "1032547698badcfe" * 4
    assert arrays["qzeros"].tobytes().hex() == "210f"
    assert arrays["scales"].tolist() == [[1, 2], [-3, 0.5]]


def test_golden_planes() -> None:
    """8 bits for a float32 kernel: the high halves of all rows, then the low ones."""
    codes = np.array([[0x10, 0x32, 0x54, 0x76, *[0x98] * 12]], np.uint8)
    q = QLinear(codes, np.array([[0.5]], np.float16), np.array([[128]], np.uint8), np.zeros(16, np.int32), 8)
    arrays = encode(q, BlockLayout.of(LinearSpec.of(q), OnnxOptions(accuracy_level=1)))
    assert arrays["qweight"].tobytes().hex() == "3175" + "99" * 6 + "2064" + "88" * 6
    assert arrays["scales"].tolist() == [[8.0], [0.5]] and arrays["qzeros"].tolist() == [[8], [0]]


@pytest.mark.parametrize(("level", "expected"), [(1, "5476" + "bb" * 6), (4, "10e4" + "ff" * 2)])
def test_golden_narrow_codes(level: int, expected: str) -> None:
    """2-bit codes have an operator; for the float32 kernel they are 4-bit ones around 8."""
    bits = 2 if level == 4 else 3
    codes = np.array([[0, 1, 2, 3, *[7] * 12]], np.uint8) & np.uint8(2**bits - 1)
    if level == 4:
        codes = np.array([[0, 0, 1, 0, 0, 1, 2, 3, *[3] * 8]], np.uint8)
    middle = np.array([[2 ** (bits - 1)]], np.uint8)
    q = QLinear(codes, np.array([[1]], np.float16), middle, np.zeros(16, np.int32), bits)
    arrays = encode(q, BlockLayout.of(LinearSpec.of(q), OnnxOptions(accuracy_level=level)))
    assert arrays["qweight"].tobytes().hex() == expected and set(arrays) == {"qweight", "scales"}


def test_golden_dequantize_linear() -> None:
    """[in, out] nibbles, signed without zero points, and a flat run over odd rows."""
    codes = np.tile(np.array([[0], [9], [15]], np.uint8), (1, 16))
    q = QLinear(codes, np.ones((3, 1), np.float16), np.full((3, 1), 8, np.uint8), np.zeros(16, np.int32), 4)
    arrays = encode(q, BlockLayout.of(LinearSpec.of(q), OnnxOptions(style="qdq")))
    assert arrays["qweight"].tobytes().hex() == "188771" * 8  # -8, 1, 7 for each of the 16 columns


@pytest.mark.parametrize(
    ("bits", "group_size", "columns", "symmetric"),
    [
        (2, 16, 48, True), (3, 32, 96, True), (3, 64, 128, False), (4, 16, 80, True), (4, 128, 256, True),
        (4, 64, 192, False), (4, -1, 100, True), (4, -1, 51, False), (8, 32, 96, True), (8, 64, 128, False),
        (8, -1, 75, True), (6, 32, 64, True), (4, 96, 192, True),
    ],
)  # fmt: skip
@pytest.mark.parametrize("style", ["matmulnbits", "qdq", "wide"])
def test_onnxruntime_multiplies_by_the_same_weights(
    tmp_path: Path, style: str, bits: int, group_size: int, columns: int, symmetric: bool
) -> None:
    """The identity matrix through a session gives the dequantized weight, bit for bit."""
    rng = np.random.default_rng(columns)
    q = random_linear((37, columns), bits, group_size, rng, symmetric)
    level = 0 if style == "wide" else 1
    options = OnnxOptions(style="qdq" if style == "qdq" else "matmulnbits", accuracy_level=level)
    found = run_linear(tmp_path, {"a.linear": q}, options, np.eye(columns, dtype=np.float32))
    assert np.array_equal(found[0], q.dequantize().T)


def test_rows_stored_as_one_are_the_same_linears(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for bits in (4, 8):
        parts = {f"m.{name}": random_linear((rows, 64), bits, 32, rng) for name, rows in (("q", 5), ("k", 3), ("v", 4))}
        folder = tmp_path / str(bits)
        folder.mkdir()
        found = run_linear(folder, parts, OnnxOptions(), np.eye(64, dtype=np.float32))
        assert len(found) == 1
        assert np.array_equal(found[0], np.concatenate([q.dequantize() for q in parts.values()]).T)


def run_linear(
    folder: Path, parts: dict[str, QLinear], options: OnnxOptions, x: npt.NDArray[np.float32]
) -> list[npt.NDArray[np.float32]]:
    """Some linears that share the input x, each or all together in onnxruntime."""
    import onnxruntime

    artifact = Memory(models.config("llama"), {}, parts)
    graph = Graph("data")
    sizes = Dimensions.of(artifact.config)
    weights = Weights(graph, artifact, options)
    made = (Contrib if options.style == "matmulnbits" else Standard)(graph, weights, sizes)
    outputs = made.linears("x", tuple(parts))
    graph.inputs.append(helper.make_tensor_value_info("x", 1, ["n", x.shape[1]]))
    graph.outputs.extend(helper.make_tensor_value_info(name, 1, ["n", "out"]) for name in outputs)
    graph.write_data(folder / "data", lambda written: None)
    onnx.save(graph.model({}, ("test", "0")), folder / "model.onnx")
    onnx.checker.check_model(str(folder / "model.onnx"), full_check=options.style == "qdq")
    session = onnxruntime.SessionOptions()
    session.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", str(options.accuracy_level))
    return list(onnxruntime.InferenceSession(folder / "model.onnx", session).run(outputs, {"x": x}))

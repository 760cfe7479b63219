"""Law 1: formats never round. decode(encode(q)) == q bit for bit, or encode refuses with the reason."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from r1quant.checkpoint.artifact import LinearSpec
from r1quant.checkpoint.tensorfile import TensorSpec
from r1quant.core import bits as packing
from r1quant.core.json import QuantConfig
from r1quant.core.qlinear import QLinear
from r1quant.errors import RecipeError
from r1quant.formats.table import CODECS
from tests.laws.linears import ALL_BITS, HALVES, linears, same, stream

PACKED = "compressed-tensors"
GPTQ_BITS = (2, 3, 4, 8)
BITS_OF = {"awq": (4,), PACKED: ALL_BITS, "compressed-tensors-int": (8,)}
DTYPES = {"int8": "I8", "int32": "I32", "int64": "I64", "float16": "F16"}
each_codec = pytest.mark.parametrize("name", CODECS)


def drawn(name: str) -> st.SearchStrategy[QLinear]:
    """Linears for one format, some of them of bits that it lacks."""
    return linears(BITS_OF.get(name, GPTQ_BITS) * 3 + (7,))


def held(*names: str) -> st.SearchStrategy[QLinear]:
    """Linears that all of the formats hold, but for a few with act-order, or with zero points of 0."""
    bits = set(ALL_BITS).intersection(*(BITS_OF.get(name, GPTQ_BITS) for name in names))
    return linears(sorted(bits), HALVES, odd=all(name.startswith(PACKED) for name in names))


def holds(name: str, q: QLinear) -> bool:
    """What each format can hold, said once more."""
    out, columns = q.shape
    if q.scale.dtype != np.float16:
        return False
    if name.startswith("gptq"):
        block = {2: 16, 3: 32, 4: 8, 8: 4}.get(q.bits)
        fits = block is not None and out % block == 0 and columns % block == 0
        return fits and (name == "gptq-v2" or bool((q.zero > 0).all()))
    even = columns % q.groups == 0 and q.group.tolist() == sorted(q.group.tolist())
    even = even and len(set(np.bincount(q.group))) == 1
    if name == "awq":
        return even and q.bits == 4 and out % 8 == 0
    return even and (name == "compressed-tensors" or q.bits == 8)


def written(name: str, q: QLinear) -> tuple[dict[str, Any], QuantConfig]:
    """The tensors of a linear called `x`, and the configuration."""
    codec = CODECS[name]
    return codec.encode(q), codec.quant_config({"x": LinearSpec.of(q)}, (), {})


@each_codec
@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_a_linear_comes_back_bit_for_bit_or_is_refused(name: str, data: st.DataObject) -> None:
    q = data.draw(drawn(name))
    q.validate()
    codec = CODECS[name]
    reason = codec.problem(LinearSpec.of(q))
    assert (reason is None) == holds(name, q), reason
    if reason is not None:
        with pytest.raises(RecipeError) as refused:
            codec.encode(q)
        assert refused.value.message == reason
        return
    tensors, config = written(name, q)
    again = codec.decode(tensors, config, "x")
    again.validate()
    assert same(q, again)
    assert np.array_equal(q.dequantize(), again.dequantize())


@each_codec
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_what_is_written_and_what_its_header_says_is_known_before(name: str, data: st.DataObject) -> None:
    """Also if the spec was planned without the linear, and allows more than it turns out to need."""
    q = data.draw(held(name))
    assume(holds(name, q))
    codec, own = CODECS[name], LinearSpec.of(q)
    top = 2**q.bits - 1
    anything = replace(own, zeros=(min(1, own.zeros[0]), top), scale_bits=11)
    for spec in (own, anything):
        assert codec.problem(spec) is None
        tensors = codec.encode(q, spec)
        specs = codec.tensor_specs("a.b", spec)
        assert [tensor.name for tensor in specs] == [f"a.b.{suffix}" for suffix in tensors]
        for tensor, array in zip(specs, tensors.values(), strict=True):
            assert (tensor.dtype, tensor.shape, tensor.nbytes) == (DTYPES[array.dtype.name], array.shape, array.nbytes)
            assert array.flags.c_contiguous
        assert set(tensors) <= set(codec.suffixes) and codec.marker_suffix in tensors
        config = codec.quant_config({"a.b": spec}, (), {})
        assert same(codec.decode(tensors, config, "a.b"), q)
        codes, *others = (suffix for suffix in codec.suffixes if suffix in tensors)
        header = next(tensor for tensor in specs if tensor.name == f"a.b.{codes}")
        arrays = {suffix: array for suffix, array in tensors.items() if suffix in others}
        assert codec.linear_spec(header, arrays, config) == own


@given(linears())
@settings(max_examples=40, deadline=None)
def test_a_form_that_does_not_cover_a_linear_is_not_taken(q: QLinear) -> None:
    spec = LinearSpec.of(q)
    assert spec.covers(spec)
    wider = replace(spec, zeros=(0, 255), scale_bits=24)
    assert wider.covers(spec)
    narrower = [
        replace(spec, shape=(spec.shape[0] + 1, spec.shape[1])),
        replace(spec, bits=spec.bits + 1),
        replace(spec, zeros=(spec.zeros[0] + 1, 255)),
        replace(spec, zeros=(0, spec.zeros[1] - 1)),
        replace(spec, scale_bits=spec.scale_bits - 1),
        replace(spec, group_size=None, scattered=spec.groups + 1),
    ]
    for other in narrower:
        assert not other.covers(spec)
        for name, codec in CODECS.items():
            if holds(name, q):
                with pytest.raises(ValueError, match="is not one of"):
                    codec.encode(q, other)


PAIRS = [pair for pair in permutations(CODECS, 2) if set(pair) != {"awq", "compressed-tensors-int"}]  # 4 bits, 8 bits


@pytest.mark.parametrize(("first", "second"), PAIRS)
@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_from_one_format_to_another_nothing_changes(first: str, second: str, data: st.DataObject) -> None:
    q = data.draw(held(first, second))
    assume(holds(first, q) and holds(second, q))
    between = CODECS[first].decode(*written(first, q), "x")
    last = CODECS[second].decode(*written(second, between), "x")
    assert same(last, q)
    assert last.dequantize().tobytes() == q.dequantize().tobytes()


@each_codec
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_the_configuration_says_how_linears_differ(name: str, data: st.DataObject) -> None:
    """Each is read by its own name from the configuration of all; GPTQ also without the group map."""
    codec = CODECS[name]
    drawn_ones = data.draw(st.lists(held(name), min_size=2, max_size=4))
    several = [q for q in drawn_ones if holds(name, q) and q.contiguous]
    named = {f"model.layers.{10**i}.mlp.up_proj": q for i, q in enumerate(several)}
    assume(named)
    linear_specs = {linear: LinearSpec.of(q) for linear, q in named.items()}
    differ = len({q.shape[1] // q.groups for q in several}) > 1 and any(q.groups > 1 for q in several)
    if name == "awq" and differ:
        with pytest.raises(RecipeError, match="one group size"):
            codec.quant_config(linear_specs, (), {})
        return
    config = codec.quant_config(linear_specs, ("lm_head",), {"quantizer": ["r1quant:0"]})
    for linear, q in named.items():
        tensors = codec.encode(q)
        assert same(codec.decode(tensors, config, linear), q)
        if tensors.pop("g_idx", None) is not None:
            assert same(codec.decode(tensors, config, linear), q)


def cells(q: QLinear, count: int = 40) -> list[tuple[int, int]]:
    rng = np.random.default_rng(0)
    return [(int(rng.integers(q.shape[0])), int(rng.integers(q.shape[1]))) for _ in range(count)]


@pytest.mark.parametrize("name", ["gptq", "gptq-v2"])
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_gptq_read_bit_by_bit(name: str, data: st.DataObject) -> None:
    """Code k of output n is at bit b * k of column n of qweight, zero point n of group g at bit b * n of row g."""
    q = data.draw(held(name))
    assume(holds(name, q))
    tensors, mask = CODECS[name].encode(q), (1 << q.bits) - 1
    for n, k in cells(q):
        code = stream(tensors["qweight"][:, n]) >> q.bits * k & mask
        g = int(tensors["g_idx"][k])
        zero = (stream(tensors["qzeros"][g]) >> q.bits * n & mask) + (name == "gptq")
        assert np.float32(tensors["scales"][g, n]) * np.float32(code - zero) == q.dequantize()[n, k]


@given(held("awq"))
@settings(max_examples=30, deadline=None)
def test_awq_read_bit_by_bit(q: QLinear) -> None:
    """Outputs 8c .. 8c + 7 are the nibbles of word c; from the lowest they are the even outputs, then the odd ones."""
    assume(holds("awq", q))
    tensors = CODECS["awq"].encode(q)
    size = q.shape[1] // q.groups
    for n, k in cells(q):
        word, place = n // 8, n % 8
        nibble = place // 2 + (4 if place % 2 else 0)
        code, zero = (
            int(tensors[s][row, word]) >> 4 * nibble & 15 for s, row in (("qweight", k), ("qzeros", k // size))
        )
        assert np.float32(tensors["scales"][k // size, n]) * np.float32(code - zero) == q.dequantize()[n, k]


@given(held(PACKED))
@settings(max_examples=40, deadline=None)
def test_packed_compressed_tensors_read_bit_by_bit(q: QLinear) -> None:
    """Code k of output n is at bit b * k of row n, zero point n of group g at bit b * n of column g."""
    assume(holds("compressed-tensors", q))
    tensors, mask = CODECS["compressed-tensors"].encode(q), (1 << q.bits) - 1
    assert tuple(tensors["weight_shape"]) == q.shape
    size = q.shape[1] // q.groups
    for n, k in cells(q):
        code, zero = stream(tensors["weight_packed"][n]) >> q.bits * k & mask, 1 << q.bits - 1
        if "weight_zero_point" in tensors:
            zero = stream(tensors["weight_zero_point"][:, k // size]) >> q.bits * n & mask
        assert np.float32(tensors["weight_scale"][n, k // size]) * np.float32(code - zero) == q.dequantize()[n, k]


@given(held("compressed-tensors-int"))
@settings(max_examples=30, deadline=None)
def test_unpacked_compressed_tensors_read_as_signed_numbers(q: QLinear) -> None:
    assume(holds("compressed-tensors-int", q))
    tensors = CODECS["compressed-tensors-int"].encode(q)
    size = q.shape[1] // q.groups
    for n, k in cells(q):
        code = int(tensors["weight"][n, k])
        zero = int(tensors["weight_zero_point"][n, k // size]) if "weight_zero_point" in tensors else 0
        assert np.float32(tensors["weight_scale"][n, k // size]) * np.float32(code - zero) == q.dequantize()[n, k]


def test_one_output_row_has_zero_points_in_one_word() -> None:
    """Packed or not, they then have the same shape."""
    q = QLinear(
        codes=np.arange(64, dtype=np.uint8).reshape(1, 64) % 16,
        scale=np.ones((1, 2), np.float16),
        zero=np.array([[3, 15]], np.uint8),
        group=(np.arange(64) // 32).astype(np.int32),
        bits=4,
    )
    tensors, config = written("compressed-tensors", q)
    assert tensors["weight_zero_point"].shape == q.zero.shape
    assert same(CODECS["compressed-tensors"].decode(tensors, config, "x"), q)


def test_linears_that_turn_out_symmetric_keep_the_form_of_the_run() -> None:
    """An asymmetric run states zero points for all linears, so one whose zero points are all 8 has them too."""
    q = QLinear(
        codes=np.zeros((8, 32), np.uint8),
        scale=np.ones((8, 1), np.float16),
        zero=np.full((8, 1), 8, np.uint8),
        group=np.zeros(32, np.int32),
        bits=4,
    )
    codec = CODECS["compressed-tensors"]
    planned = LinearSpec((8, 32), 4, 32, (0, 15), 11)
    assert set(codec.encode(q)) < set(codec.encode(q, planned))
    specs = {spec.name: spec.dtype for spec in codec.tensor_specs("x", planned)}
    assert specs["x.weight_zero_point"] == "I32" and specs["x.weight_scale"] == "F16"
    assert codec.encode(q, planned)["weight_scale"].dtype == np.float16


@given(st.integers(2, 8), st.integers(1, 5), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_packing_is_a_dense_little_endian_stream(bits: int, blocks: int, seed: int) -> None:
    n = packing.values_per_block(bits) * blocks
    values = np.random.default_rng(seed).integers(0, 2**bits, (3, n), dtype=np.uint8)
    words = packing.pack(values, bits)
    assert words.dtype == np.int32
    assert words.shape == (3, n * bits // 32)
    for row, packed in zip(values, words, strict=True):
        assert stream(packed) == sum(int(v) << bits * i for i, v in enumerate(row))
    assert np.array_equal(packing.unpack(words, bits), values)


def test_packing_refuses_ragged_rows() -> None:
    with pytest.raises(ValueError, match="do not fill"):
        packing.pack(np.zeros((1, 7), np.uint8), 4)


@each_codec
def test_every_suffix_is_listed_with_the_codes_first(name: str) -> None:
    codec = CODECS[name]
    assert codec.name == name
    spec = LinearSpec((32, 64), 4 if name == "awq" else 8, 32, (0 if name != "gptq" else 1, 9), 11)
    specs = codec.tensor_specs("a.b", spec)
    sizes = {tensor.name.rpartition(".")[2]: tensor.nbytes for tensor in specs}
    first = next(suffix for suffix in codec.suffixes if suffix in sizes)
    assert first == max(sizes, key=lambda suffix: sizes[suffix])
    assert all(isinstance(tensor, TensorSpec) and tensor.name.startswith("a.b.") for tensor in specs)


def plain(out: int, columns: int, bits: int) -> QLinear:
    rng = np.random.default_rng(out * columns)
    return QLinear(
        codes=rng.integers(0, 2**bits, (out, columns), dtype=np.uint8),
        scale=np.ones((out, 1), np.float16),
        zero=rng.integers(1, 2**bits, (out, 1), dtype=np.uint8),
        group=np.zeros(columns, np.int32),
        bits=bits,
    )


@pytest.mark.parametrize(
    ("name", "bits", "rows", "columns"),
    [
        ("gptq", 2, 16, 16),
        ("gptq", 3, 32, 32),
        ("gptq", 4, 8, 8),
        ("gptq", 8, 4, 4),
        ("awq", 4, 8, 1),
        ("compressed-tensors", 3, 1, 1),
        ("compressed-tensors-int", 8, 1, 1),
    ],
)
def test_the_shapes_that_a_format_packs(name: str, bits: int, rows: int, columns: int) -> None:
    """Every multiple of these, and nothing between."""
    codec = CODECS[name]
    for out, n in (
        (rows, columns),
        (3 * rows, 5 * columns),
        (rows + rows // 2, columns),
        (rows, columns + columns // 2),
    ):
        q = plain(out, n, bits)
        if out % rows == 0 and n % columns == 0:
            assert same(codec.decode(*written(name, q), "x"), q)
        else:
            assert f"are not a multiple of {rows if out % rows else columns}" in str(codec.problem(LinearSpec.of(q)))

"""The compressed-tensors package itself reads our integers as they are, and we read what it compressed as it does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.pack_quantized import pack_to_int32, unpack_from_int32
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    apply_quantization_config,
)
from compressed_tensors.quantization.lifecycle.forward import quantize
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import load_file, save_file

import r1quant
from r1quant.checkpoint.artifact import LinearSpec
from r1quant.checkpoint.safetensors import open_folder
from r1quant.core.json import QuantConfig
from r1quant.core.qlinear import QLinear
from r1quant.formats.codec import CodecArtifact
from r1quant.formats.table import CODECS, artifact
from tests.models import write_model


def skeleton(folder: Path) -> torch.nn.Module:
    """The model of a folder without its weights, with the scheme that the package gives each module."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    apply_quantization_config(model, QuantizationConfig.model_validate(dict(config.quantization_config)))
    result: torch.nn.Module = model
    return result


def schemes(folder: Path) -> Iterator[tuple[str, QuantizationScheme]]:
    for name, module in skeleton(folder).named_modules():
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is not None:
            yield name, scheme


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for path in sorted(folder.glob("*.safetensors")) for k, v in load_file(path).items()}


def of(tensors: dict[str, torch.Tensor], linear: str) -> dict[str, torch.Tensor]:
    """The tensors of a module by their own names; the scale is widened, so that the package rounds nothing."""
    mine = {name.rpartition(".")[2]: tensor for name, tensor in tensors.items() if name.rpartition(".")[0] == linear}
    return {name: tensor.float() if name == "weight_scale" else tensor for name, tensor in mine.items()}


def decompressed(tensors: dict[str, torch.Tensor], linear: str, scheme: QuantizationScheme) -> np.ndarray:
    compressor = BaseCompressor.get_value_from_registry(scheme.format)
    weight: np.ndarray = compressor.decompress(of(tensors, linear), scheme)["weight"].numpy()
    return weight


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("shape", [(1, 1), (1, 31), (7, 33), (32, 64), (70, 150)])
def test_packing(bits: int, shape: tuple[int, int]) -> None:
    """Codes along the columns and zero points along the rows, whether they fill the last word or not."""
    rng = np.random.default_rng(bits)
    codes = rng.integers(0, 2**bits, shape, dtype=np.uint8)
    zero = rng.integers(0, 2**bits, (shape[0], 1), dtype=np.uint8)
    group = np.zeros(shape[1], np.int32)
    q = QLinear(codes, np.ones(zero.shape, np.float16), zero, group, bits)
    # Said of the form, because zero points that happen to be all in the middle would not be written.
    ours = CODECS["compressed-tensors"].encode(q, LinearSpec(shape, bits, -1, (0, 2**bits - 1)))
    half = 1 << (bits - 1)
    signed = [torch.from_numpy((values.astype(np.int16) - half).astype(np.int8)) for values in (codes, zero)]
    for packed, values, axis in zip((ours["weight_packed"], ours["weight_zero_point"]), signed, (1, 0), strict=True):
        assert np.array_equal(packed, pack_to_int32(values, bits, packed_dim=axis).numpy())
        again = unpack_from_int32(torch.from_numpy(packed), bits, values.shape, packed_dim=axis)
        assert torch.equal(again, values)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("differential") / "qwen2", "qwen2", tied=True)


@pytest.mark.parametrize(
    ("name", "bits", "size", "symmetric"),
    [
        ("compressed-tensors", 2, 16, True),
        ("compressed-tensors", 3, 32, False),
        ("compressed-tensors", 4, 32, True),
        ("compressed-tensors", 4, 32, False),
        ("compressed-tensors", 4, -1, False),
        ("compressed-tensors", 8, 32, False),
        ("compressed-tensors-int", 8, 32, True),
        ("compressed-tensors-int", 8, -1, False),
    ],
)
def test_the_package_reads_our_folders(
    name: str, bits: int, size: int, symmetric: bool, model: Path, tmp_path: Path
) -> None:
    """Every linear that we quantized has a scheme, no other module has one, and every weight is the same float32."""
    out = tmp_path / "out"
    r1quant.quantize(model, out, bits=bits, group_size=size, symmetric=symmetric, method="rtn", format=name)
    ours, tensors = artifact(open_folder(out)), stored(out)
    theirs = dict(schemes(out))
    assert theirs.keys() == ours.linear_specs.keys()
    for linear, scheme in theirs.items():
        assert (scheme.weights.num_bits, scheme.weights.symmetric) == (bits, symmetric)
        assert np.array_equal(decompressed(tensors, linear, scheme), ours.read(f"{linear}.weight").numpy())


def test_the_package_reads_a_folder_of_several_kinds(model: Path, tmp_path: Path) -> None:
    """Linears of different bits, groups and symmetry are told apart by name; the head stays as it is."""
    source, codec = open_folder(model), CODECS["compressed-tensors"]
    rng = np.random.default_rng(0)
    linear_specs: dict[str, LinearSpec] = {}
    tensors: dict[str, torch.Tensor] = {}
    kinds = ((4, 32, True), (8, -1, True), (3, 16, False), (4, 32, False))
    for name, info in source.tensors.items():
        linear = name.removesuffix(".weight")
        if not linear.endswith("_proj"):
            tensors[name] = source.read(name)
            continue
        bits, size, symmetric = kinds[len(linear_specs) % len(kinds)]
        out, columns = info.shape
        group = (np.arange(columns) // (columns if size == -1 else size)).astype(np.int32)
        shape = (out, int(group[-1]) + 1)
        zero = rng.integers(0, 2**bits, shape, dtype=np.uint8)
        q = QLinear(
            codes=rng.integers(0, 2**bits, info.shape, dtype=np.uint8),
            scale=(rng.integers(128, 256, shape) * rng.choice([-1, 1], shape) * 2.0**-14).astype(np.float16),
            zero=np.full(shape, 2 ** (bits - 1), np.uint8) if symmetric else zero,
            group=group,
            bits=bits,
        )
        linear_specs[linear] = LinearSpec.of(q)
        tensors |= {f"{linear}.{suffix}": torch.from_numpy(array) for suffix, array in codec.encode(q).items()}
    folder = written(tmp_path / "mixed", model, tensors, codec.quant_config(linear_specs, ("lm_head",), {}))
    ours = artifact(open_folder(folder))
    assert dict(ours.linear_specs) == linear_specs and len({form.bits for form in linear_specs.values()}) == 3
    theirs = dict(schemes(folder))
    assert theirs.keys() == linear_specs.keys()
    for linear, scheme in theirs.items():
        assert np.array_equal(decompressed(tensors, linear, scheme), ours.read(f"{linear}.weight").numpy())


def written(folder: Path, model: Path, tensors: dict[str, torch.Tensor], quant_config: QuantConfig) -> Path:
    folder.mkdir()
    config = json.loads((model / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quant_config}))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def parameters(weight: torch.Tensor, args: QuantizationArgs) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero point as the package computes them for each group, row or tensor."""
    if args.strategy == "tensor":
        low, high = weight.min(), weight.max()
    else:
        grouped = weight.unflatten(-1, (-1, args.group_size)) if args.strategy == "group" else weight.unsqueeze(1)
        low, high = grouped.amin(-1), grouped.amax(-1)
    result: tuple[torch.Tensor, torch.Tensor] = calculate_qparams(low, high, args)
    return result


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    ("layout", "bits", "strategy"),
    [
        ("pack-quantized", 2, "group"),
        ("pack-quantized", 3, "group"),
        ("pack-quantized", 4, "group"),
        ("pack-quantized", 4, "channel"),
        ("pack-quantized", 4, "tensor"),
        ("pack-quantized", 8, "group"),
        ("int-quantized", 8, "channel"),
        ("int-quantized", 8, "tensor"),
        ("int-quantized", 8, "group"),
        ("naive-quantized", 4, "group"),
    ],
)
def test_we_read_what_the_package_compressed(
    layout: str, bits: int, strategy: str, symmetric: bool, dtype: torch.dtype, model: Path, tmp_path: Path
) -> None:
    """Integers, zero points and scales, and so the weights that the package itself makes of them."""
    args = QuantizationArgs(
        num_bits=bits, symmetric=symmetric, strategy=strategy, group_size=16 if strategy == "group" else None
    )
    scheme = QuantizationScheme(targets=["Linear"], weights=args, format=layout)
    compressor = BaseCompressor.get_value_from_registry(layout)
    tensors, codes, zeros = {}, {}, {}
    source = open_folder(model)
    for name in source.tensors:
        weight, linear = source.read(name).to(dtype), name.removesuffix(".weight")
        if ".layers.0." not in name or not linear.endswith("_proj"):
            tensors[name] = weight
            continue
        scale, zero = parameters(weight, args)
        state = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero}
        tensors |= {f"{linear}.{suffix}": tensor for suffix, tensor in compressor.compress(state, scheme).items()}
        codes[linear] = quantize(weight, scale, zero, args, dtype=torch.int8)
        zeros[linear] = zero
    ignored = sorted({name.removesuffix(".weight") for name in tensors if ".layers.1." in name and "_proj.w" in name})
    quant_config = QuantizationConfig(
        config_groups={"group_0": scheme}, format=layout, quantization_status="compressed", ignore=["lm_head", *ignored]
    ).to_dict()
    ours = artifact(open_folder(written(tmp_path / "theirs", model, tensors, quant_config)))
    assert ours.linear_specs.keys() == codes.keys()
    half = 1 << (bits - 1)
    for linear in codes:
        q = ours.qlinear(linear)
        assert ours.linear_specs[linear] == LinearSpec.of(q)
        assert np.array_equal(q.codes.astype(np.int16) - half, codes[linear].numpy())
        assert (q.zero.astype(np.int16) - half == zeros[linear].to(torch.int16).numpy()).all()
        assert np.array_equal(q.dequantize(), decompressed(tensors, linear, scheme))
        again_exactly(ours, linear, q)


def again_exactly(ours: CodecArtifact, linear: str, q: QLinear) -> None:
    """What was read can be written in our own way, and is then still the same."""
    assert ours.codec is not None
    codec = ours.codec if q.bits == 8 else CODECS["compressed-tensors"]
    if codec.problem(LinearSpec.of(q)) is None:
        arrays = codec.encode(q)
        config = codec.quant_config({linear: LinearSpec.of(q)}, (), {})
        assert np.array_equal(codec.decode(arrays, config, linear).dequantize(), q.dequantize())

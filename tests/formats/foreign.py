"""Checkpoints as other programs write them, packed here number by number and without r1quant."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file

from r1quant.checkpoint.safetensors import open_folder
from r1quant.formats.codec import CodecArtifact
from r1quant.formats.table import artifact
from tests.models import config

Array = npt.NDArray[Any]
Tensors = dict[str, Any]
LAYER = "model.layers.0.mlp.down_proj"
OTHER = "model.layers.1.mlp.down_proj"
AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # the nibble of a word that each of its eight outputs is in


def pack(values: Array, bits: int, axis: int) -> Array:
    """Integers along an axis as a dense stream of bits, in words of 32."""

    def words(line: Array) -> Array:
        number = sum(int(value) << bits * i for i, value in enumerate(line))
        count = -(-len(line) * bits // 32)
        return np.array([number >> 32 * i & 0xFFFFFFFF for i in range(count)], np.uint32).view(np.int32)

    return np.ascontiguousarray(np.apply_along_axis(words, axis, values))


def numbers(out: int, columns: int, groups: int, bits: int, smallest: int = 1) -> tuple[Array, Array, Array]:
    """Codes [out, columns], zero points [out, groups] of at least `smallest`, scales [out, groups] in float16."""
    rng = np.random.default_rng(out + columns + groups + bits)
    codes = rng.integers(0, 2**bits, (out, columns))
    zero = rng.integers(smallest, 2**bits, (out, groups))
    return codes, zero, (rng.integers(128, 256, (out, groups)) * 2.0**-14).astype(np.float16)


def weights(codes: Array, zero: Array, scale: Array, group: Array) -> npt.NDArray[np.float32]:
    """The equation, in float64 and then float32."""
    wide = (codes - zero[:, group]) * scale.astype(np.float64)[:, group]
    return wide.astype(np.float32)


def gptq(linear: str, codes: Array, zero: Array, scale: Array, group: Array, bits: int, version: int = 1) -> Tensors:
    return {
        f"{linear}.qweight": pack(codes.T, bits, 0),
        f"{linear}.qzeros": pack(zero.T - (version == 1), bits, 1),
        f"{linear}.scales": scale.T.copy(),
        f"{linear}.g_idx": group.astype(np.int32),
    }


def awq(linear: str, codes: Array, zero: Array, scale: Array) -> Tensors:
    def ordered(values: Array) -> Array:
        """[n, out]: each eight outputs in the order of their nibbles."""
        eights = values.reshape(len(values), -1, 8)
        moved = np.empty_like(eights)
        for output, nibble in enumerate(AWQ_PLACES):
            moved[:, :, nibble] = eights[:, :, output]
        return moved.reshape(values.shape)

    return {
        f"{linear}.qweight": pack(ordered(codes.T), 4, 1),
        f"{linear}.qzeros": pack(ordered(zero.T), 4, 1),
        f"{linear}.scales": scale.T.copy(),
    }


def compressed(linear: str, codes: Array, zero: Array | None, scale: Array, bits: int) -> Tensors:
    found = {
        f"{linear}.weight_packed": pack(codes, bits, 1),
        f"{linear}.weight_scale": torch.from_numpy(scale).bfloat16(),
        f"{linear}.weight_shape": np.array(codes.shape),
    }
    return found if zero is None else {**found, f"{linear}.weight_zero_point": pack(zero, bits, 0)}


def scheme(bits: int, size: int | None, symmetric: bool, targets: list[str], **weights: Any) -> dict[str, Any]:
    """A config group of compressed-tensors."""
    strategy = "channel" if size is None else "group"
    options = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": strategy, "group_size": size}
    return {"targets": targets, "weights": options | weights, "input_activations": None}


def groups(*schemes: dict[str, Any], format: str = "pack-quantized", ignore: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "format": format,
        "quantization_status": "compressed",
        "config_groups": {f"group_{i}": scheme for i, scheme in enumerate(schemes)},
        "ignore": list(ignore),
    }


def folder_of(folder: Path, tensors: Mapping[str, Any], quant_config: Any, /, **files: Any) -> CodecArtifact:
    """A folder of these tensors and an embedding, opened. files: further JSON files, by name without `.json`."""
    folder.mkdir(parents=True)
    every = dict(tensors)
    if not any(name.startswith("model.embed_tokens.") for name in tensors):
        every["model.embed_tokens.weight"] = np.ones((4, 8), np.float32)
    torches = {name: t if isinstance(t, torch.Tensor) else torch.from_numpy(t.copy()) for name, t in every.items()}
    save_file({name: tensor.contiguous() for name, tensor in torches.items()}, folder / "model.safetensors")
    values = config("llama") if quant_config is None else {**config("llama"), "quantization_config": quant_config}
    (folder / "config.json").write_text(json.dumps(values))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return artifact(open_folder(folder))


def reads(ours: CodecArtifact, linear: str, expected: npt.NDArray[np.float32]) -> bool:
    """Whether a linear comes out as expected, and its form is known without its codes."""
    from r1quant.checkpoint.artifact import LinearSpec

    q = ours.qlinear(linear)
    agree = ours.linear_specs[linear] == LinearSpec.of(q) and ours.tensors[f"{linear}.weight"].shape == expected.shape
    return agree and bool(np.array_equal(ours.read(f"{linear}.weight").numpy(), expected))

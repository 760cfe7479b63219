"""Codec: what a safetensors format of quantized linears must be able to do, and a checkpoint seen through one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from r1quant.checkpoint.artifact import CheckpointArtifact, LinearSpec
from r1quant.checkpoint.tensorfile import TensorSpec
from r1quant.core.floats import fits_float16
from r1quant.core.json import Config, JsonObject, QuantConfig
from r1quant.core.qlinear import QLinear, QuantizedLinear
from r1quant.errors import CheckpointError, RecipeError
from r1quant.registry import FORMATS

Arrays = Mapping[str, npt.NDArray[Any]]
EMBEDDING, HEAD = "model.embed_tokens", "lm_head"  # of which configurations speak by name


class Encoder(Protocol):
    """A format that can be written. A linear is several tensors, which are called LINEAR.SUFFIX."""

    @property
    def name(self) -> str:
        """As in registry.FORMATS."""

    @property
    def suffixes(self) -> tuple[str, ...]:
        """All that a linear can have. Those that can hold the codes come first."""

    def problem(self, spec: LinearSpec) -> str | None:
        """Why a linear of this spec, on a grid of a kind that it holds, cannot be stored; None if it can."""

    def tensor_specs(self, linear: str, spec: LinearSpec) -> list[TensorSpec]:
        """What will be written for a linear, in the order of encode."""

    def encode(self, q: QuantizedLinear, spec: LinearSpec | None = None) -> dict[str, npt.NDArray[Any]]:
        """Tensors by suffix, as tensor_specs(linear, spec) has them; without a spec, that of the linear itself.

        A spec known before the linear may allow more than it needs. Raises RecipeError if the format cannot hold
        the linear exactly, ValueError if the spec does not cover it.
        """

    def quant_config(
        self, linear_specs: Mapping[str, LinearSpec], plain: tuple[str, ...], meta: JsonObject
    ) -> QuantConfig:
        """The quantization_config; empty if a reader needs none. plain: linears that stay in float; meta: how it was
        made.

        Raises RecipeError if the configuration cannot say how the linears differ.
        """

    def side_files(self, quant_config: QuantConfig) -> Mapping[str, JsonObject]:
        """Further JSON files that readers look for, by name."""


class Codec(Encoder, Protocol):
    """A format that can be read as well."""

    @property
    def marker_suffix(self) -> str:
        """The suffix that no other tensor has: a tensor with it belongs to a quantized linear."""

    def linear_spec(self, codes: TensorSpec, arrays: Arrays, quant_config: QuantConfig) -> LinearSpec:
        """What a linear is, without its codes: `codes` is their header, arrays has all the other suffixes."""

    def decode(self, arrays: Arrays, quant_config: QuantConfig, linear: str = "") -> QLinear:
        """The inverse of encode, for anybody's tensors.

        Raises CheckpointError or ValueError if the tensors cannot be a linear of this format.
        """


def other_kind(format: str, kind: str) -> str | None:
    """Why a format of registry.FORMATS does not hold the integers of a kind of grid; None if it does."""
    held = FORMATS[format].grids
    return None if kind in held else f"{format} holds the integers of the {' and '.join(held) or 'no'} grid, not {kind}"


def table_problem(format: str, table: str, tied: bool) -> str | None:
    """Why a format of registry.FORMATS does not hold a table as integers; None if it does.

    table  embedding or head
    tied   whether one tensor is both
    """
    of = FORMATS[format]
    if table not in of.tables:
        return f"{format} holds the {table} in floats only"
    if tied and not of.tied_tables:
        return f"embedding and head are one tensor (tie_word_embeddings), which {format} holds in floats only"
    return None


def require_tables(codec: Encoder, linear_specs: Mapping[str, LinearSpec]) -> None:
    """Raises RecipeError if embedding or head is among the linears, and the format does not hold it."""
    for table, name in (("embedding", EMBEDDING), ("head", HEAD)):
        reason = table_problem(codec.name, table, tied=False) if name in linear_specs else None
        if reason:
            raise RecipeError(f"{name}: {reason}", f"leave the {table} in float, or use compressed-tensors")


def uniform(codec: Encoder, q: QuantizedLinear) -> QLinear:
    """The linear, known to be on the uniform grid. Raises RecipeError if it is not: what every encode begins with."""
    if not isinstance(q, QLinear):
        raise RecipeError(other_kind(codec.name, q.kind) or codec.name, "use --format safetensors, which holds floats")
    return q


def refuse(codec: Codec, q: QLinear, spec: LinearSpec | None = None) -> LinearSpec:
    """The spec that a linear is stored in. Raises RecipeError if it cannot be stored."""
    own = LinearSpec.of(q)
    reason = codec.problem(own)
    if reason:
        raise RecipeError(reason, "choose another format, or quantize with other options")
    if spec is not None and not spec.covers(own):
        raise ValueError(f"a linear of {own} is not one of {spec}")
    return spec or own


def as_stored_scale(scale: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Scales as a QLinear holds them: float16 if that is exact, else float32."""
    return np.ascontiguousarray(scale.astype(np.float16 if fits_float16(scale) else np.float32))


def group_sizes(linear_specs: Mapping[str, LinearSpec]) -> dict[str, int | None]:
    """The group size of each linear, so that they differ as little as they can.

    If a whole row is as long as the groups of other linears, its group has that size, and not -1.
    """
    sizes = {spec.group_size for spec in linear_specs.values()}
    rows = {name: spec.shape[1] for name, spec in linear_specs.items() if spec.group_size == -1}
    return {name: rows[name] if rows.get(name, 0) in sizes else spec.group_size for name, spec in linear_specs.items()}


def tensor(arrays: Arrays, suffix: str, dtypes: tuple[str, ...], shape: tuple[int | None, ...]) -> npt.NDArray[Any]:
    """A tensor of a linear; None in the shape is any length but 0.

    Raises ValueError if it has another shape or dtype, or is missing.
    """
    if suffix not in arrays:
        raise ValueError(f"{suffix} is missing")
    array = arrays[suffix]
    fits = len(shape) == array.ndim and all(n == m or n is None for n, m in zip(shape, array.shape, strict=True))
    if not fits or array.size == 0:
        needed = ", ".join("any" if n is None else str(n) for n in shape)
        raise ValueError(f"{suffix} has the shape {list(array.shape)} but [{needed}] is needed")
    if array.dtype.name not in dtypes:
        raise ValueError(f"{suffix} is {array.dtype.name}, not {' or '.join(dtypes)}")
    return array


def packed_shape(codes: TensorSpec) -> tuple[int, int]:
    """The shape of a matrix of 32-bit words, known from its header. Raises ValueError if it is something else."""
    if codes.dtype != "I32" or len(codes.shape) != 2 or 0 in codes.shape:
        raise ValueError(f"{codes.name.rpartition('.')[2]} is {codes.dtype} {list(codes.shape)}, not a matrix of I32")
    return codes.shape[0], codes.shape[1]


def whole(options: JsonObject, *keys: str) -> int | None:
    """The integer that a configuration states under the first of the keys that is there; None if none is.

    Raises ValueError if it is no integer.
    """
    for key in keys:
        value = options.get(key)
        if value is not None:
            if not isinstance(value, int) or isinstance(value, bool):
                raise ValueError(f"the configuration has {key} {value!r}, which is no integer")
            return value
    return None


def runs(columns: int, groups: int, size: int | None) -> npt.NDArray[np.int32]:
    """int32 [columns]: the group of each column if groups are runs of `size`; below 1 one run, None equal runs.

    Raises ValueError if these are not as many groups as there are.
    """
    if size is None and columns % groups == 0:
        size = columns // groups
    length = columns if size is not None and size < 1 else size
    if length is None or -(-columns // length) != groups:
        layout = "equal groups" if size is None else "one group" if size < 1 else f"groups of {size}"
        raise ValueError(f"{groups} groups of scales do not fit {columns} columns in {layout}")
    return (np.arange(columns) // length).astype(np.int32)


def matches(pattern: str, linear: str) -> bool:
    """Whether the name begins as a regular expression says. Raises ValueError if it is none."""
    try:
        return re.match(pattern, linear) is not None
    except (re.error, OverflowError, RecursionError):
        raise ValueError(f"the configuration has {pattern!r}, which is no regular expression") from None


@contextmanager
def _named(linear: str) -> Iterator[None]:
    """Turns a ValueError about foreign tensors into a CheckpointError that names the linear."""
    try:
        yield
    except ValueError as error:
        raise CheckpointError(
            f"{linear}: {error}", "the checkpoint is damaged, or of a kind that is not read; use another"
        ) from None


@dataclass(frozen=True)
class CodecArtifact(CheckpointArtifact):
    """A quantized safetensors checkpoint as an Artifact (or a float one, if codec is None)."""

    codec: Codec | None

    @property
    def format(self) -> str:
        return self.codec.name if self.codec else "safetensors"

    @property
    def quant_config(self) -> QuantConfig:
        """The quantization_config."""
        return self.checkpoint.config.get("quantization_config") or {}

    @cached_property
    def config(self) -> Config:
        return {key: value for key, value in self.checkpoint.config.items() if key != "quantization_config"}

    @cached_property
    def _parts(self) -> dict[str, list[str]]:
        """The suffixes that each quantized linear has."""
        if self.codec is None:
            return {}
        parts: dict[str, list[str]] = {}
        for name in self.checkpoint.tensors:
            linear, dot, suffix = name.rpartition(".")
            if dot and suffix == self.codec.marker_suffix:
                parts[linear] = [s for s in self.codec.suffixes if f"{linear}.{s}" in self.checkpoint.tensors]
        if not parts:
            raise CheckpointError(
                f"config.json of {self.source} says {self.codec.name}, "
                f"but no tensor is called .{self.codec.marker_suffix}",
                "use a checkpoint whose configuration and weights belong together",
            )
        return parts

    @cached_property
    def tensors(self) -> Mapping[str, TensorSpec]:
        packed = {f"{linear}.{suffix}" for linear, suffixes in self._parts.items() for suffix in suffixes}
        specs: dict[str, TensorSpec] = {}
        for name, info in self.checkpoint.tensors.items():
            if name not in packed:
                specs[name] = TensorSpec(name, info.dtype, info.shape)
            elif self.codec and name.endswith("." + self.codec.marker_suffix):
                weight = name.rpartition(".")[0] + ".weight"
                specs[weight] = TensorSpec(weight, "F32", self.linear_specs[weight.removesuffix(".weight")].shape)
        return specs

    @cached_property
    def linear_specs(self) -> Mapping[str, LinearSpec]:
        """Read from scales, zero points and group maps, so that what a configuration claims does not matter."""
        return {linear: self._linear_spec(linear) for linear in self._parts}

    def _linear_spec(self, linear: str) -> LinearSpec:
        assert self.codec is not None
        codes, *others = self._parts[linear]
        info = self.checkpoint.info(f"{linear}.{codes}")
        arrays = {suffix: self._array(f"{linear}.{suffix}") for suffix in others}
        with _named(linear):
            return self.codec.linear_spec(TensorSpec(info.name, info.dtype, info.shape), arrays, self.quant_config)

    def holds(self, linear: str) -> bool:
        return linear in self._parts

    def qlinear(self, linear: str) -> QLinear:
        if self.codec is None or not self.holds(linear):
            raise CheckpointError(f"{linear} is not quantized in {self.source}", "name a linear that is")
        arrays = {suffix: self._array(f"{linear}.{suffix}") for suffix in self._parts[linear]}
        with _named(linear):
            q = self.codec.decode(arrays, self.quant_config, linear)
            q.validate()
        return q

    def _array(self, name: str) -> npt.NDArray[Any]:
        """A tensor as numpy has it; bfloat16 is widened to float32."""
        if 0 in self.checkpoint.info(name).shape:
            raise CheckpointError(f"{name} is empty", "the checkpoint is damaged; download it again")
        tensor = self.checkpoint.read(name)
        return np.asarray((tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy())

"""Codec: what a safetensors format of quantized linears must be able to do, and a checkpoint seen through one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from r1quant.artifact import Form
from r1quant.checkpoint import Checkpoint
from r1quant.errors import CheckpointError, RecipeError
from r1quant.qlinear import QLinear
from r1quant.tensorfile import TensorSpec

if TYPE_CHECKING:
    import torch

Arrays = Mapping[str, npt.NDArray[Any]]


class Codec(Protocol):
    """One format. A linear is several tensors, LINEAR.SUFFIX each."""

    @property
    def name(self) -> str:
        """As in registry.FORMATS."""

    @property
    def suffixes(self) -> tuple[str, ...]:
        """All that a linear can have. Those that can hold the codes come first."""

    @property
    def telling(self) -> str:
        """The suffix that no other tensor has: where it is, there is a quantized linear."""

    def problem(self, form: Form) -> str | None:
        """Why a linear of this form cannot be stored; None where it can."""

    def specs(self, linear: str, form: Form) -> list[TensorSpec]:
        """What will be written for a linear, in the order of encode."""

    def encode(self, q: QLinear) -> dict[str, npt.NDArray[Any]]:
        """Tensors by suffix. Raises RecipeError where the format cannot hold them exactly."""

    def form(self, codes: TensorSpec, arrays: Arrays, config: Mapping[str, Any]) -> Form:
        """What a linear is, without its codes: `codes` says where they are, arrays has all the other suffixes."""

    def decode(self, arrays: Arrays, config: Mapping[str, Any], linear: str = "") -> QLinear:
        """The inverse of encode, for anybody's tensors; config is the quantization_config.

        Raises CheckpointError or ValueError where the tensors cannot be a linear of this format.
        """

    def config(self, forms: Mapping[str, Form], plain: tuple[str, ...], meta: Mapping[str, Any]) -> dict[str, Any]:
        """The quantization_config. plain: linears that stay in float; meta: how it was made."""

    def side_files(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Further JSON files that readers look for, by name."""


def refuse(codec: Codec, q: QLinear) -> None:
    """Raises RecipeError where a linear cannot be stored: what every encode begins with."""
    reason = codec.problem(Form.of(q))
    if reason:
        raise RecipeError(reason, "choose another format, or quantize with other options")


def shipped(scale: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Scales as a QLinear holds them: float16 where that is exact, else float32."""
    halves = scale.astype(np.float16)
    exact = bool((halves.astype(np.float32) == scale.astype(np.float32)).all())
    return np.ascontiguousarray(halves if exact else scale.astype(np.float32))


@contextmanager
def _named(linear: str) -> Iterator[None]:
    """Whatever does not fit together in foreign tensors is said with the name of the linear."""
    try:
        yield
    except (ValueError, KeyError, IndexError, ZeroDivisionError) as error:
        reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(f"{linear}: {reason}", "the file is damaged; download it again") from None


@dataclass(frozen=True)
class CodecArtifact:
    """A quantized safetensors checkpoint as an Artifact (or a float one, where codec is None)."""

    checkpoint: Checkpoint
    codec: Codec | None

    @property
    def source(self) -> str:
        return self.checkpoint.source

    @property
    def folder(self) -> Path:
        return self.checkpoint.folder

    @property
    def format(self) -> str:
        return self.codec.name if self.codec else "safetensors"

    @property
    def stated(self) -> Mapping[str, Any]:
        """The quantization_config."""
        return self.checkpoint.config.get("quantization_config") or {}

    @cached_property
    def config(self) -> Mapping[str, Any]:
        return {key: value for key, value in self.checkpoint.config.items() if key != "quantization_config"}

    @property
    def carried(self) -> Mapping[str, bytes]:
        return self.checkpoint.carried

    @cached_property
    def _parts(self) -> dict[str, list[str]]:
        """The suffixes that each quantized linear has."""
        if self.codec is None:
            return {}
        parts = {}
        for name in self.checkpoint.tensors:
            linear, _, suffix = name.rpartition(".")
            if suffix == self.codec.telling:
                parts[linear] = [s for s in self.codec.suffixes if f"{linear}.{s}" in self.checkpoint.tensors]
        return parts

    @cached_property
    def tensors(self) -> Mapping[str, TensorSpec]:
        packed = {f"{linear}.{suffix}" for linear, suffixes in self._parts.items() for suffix in suffixes}
        found: dict[str, TensorSpec] = {}
        for name, info in self.checkpoint.tensors.items():
            if name not in packed:
                found[name] = TensorSpec(name, info.dtype, info.shape)
            elif self.codec and name.endswith("." + self.codec.telling):
                weight = name.rpartition(".")[0] + ".weight"
                found[weight] = TensorSpec(weight, "F32", self.forms[weight.removesuffix(".weight")].shape)
        return found

    @cached_property
    def forms(self) -> Mapping[str, Form]:
        """Read from scales, zero points and group maps, so that what a configuration claims does not matter."""
        return {linear: self._form(linear) for linear in self._parts}

    def _form(self, linear: str) -> Form:
        assert self.codec is not None
        codes, *others = self._parts[linear]
        info = self.checkpoint.info(f"{linear}.{codes}")
        arrays = {suffix: self._array(f"{linear}.{suffix}") for suffix in others}
        with _named(linear):
            return self.codec.form(TensorSpec(info.name, info.dtype, info.shape), arrays, self.stated)

    def qlinear(self, linear: str) -> QLinear:
        if self.codec is None or linear not in self._parts:
            raise CheckpointError(f"{linear} is not quantized in {self.source}", "name a linear that is")
        arrays = {suffix: self._array(f"{linear}.{suffix}") for suffix in self._parts[linear]}
        with _named(linear):
            q = self.codec.decode(arrays, self.stated, linear)
            q.validate()
        return q

    def _array(self, name: str) -> npt.NDArray[Any]:
        """A tensor as numpy has it; bfloat16 is widened to float32."""
        tensor = self.checkpoint.read(name)
        return np.asarray((tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy())

    def read(self, name: str) -> torch.Tensor:
        import torch

        linear = name.removesuffix(".weight")
        if linear != name and linear in self._parts:
            return torch.from_numpy(self.qlinear(linear).dequantize())
        return self.checkpoint.read(name)

    def chunks(self, name: str) -> Iterator[npt.NDArray[np.uint8]]:
        return self.checkpoint.chunks(self.checkpoint.info(name))

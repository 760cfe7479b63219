"""A model in memory as an Artifact, and an ONNX folder run by onnxruntime directly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch

from r1quant.arch import rope
from r1quant.checkpoint.artifact import LinearSpec
from r1quant.checkpoint.tensorfile import TensorSpec
from r1quant.core.floats import round_to
from r1quant.core.qlinear import QLinear
from tests import models


@dataclass(frozen=True)
class Memory:
    """floats: float32 tensors by name, exact in `dtype`; linears: quantized ones by name without `.weight`."""

    config: Mapping[str, Any]
    floats: Mapping[str, npt.NDArray[np.float32]]
    linears: Mapping[str, QLinear]
    dtype: str = "BF16"
    side_files: Mapping[str, bytes] = field(default_factory=dict)
    source: str = "memory"
    folder: Path = Path()
    format: str = "gptq"

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        plain = {name: TensorSpec(name, self.dtype, array.shape) for name, array in self.floats.items()}
        return plain | {f"{n}.weight": TensorSpec(f"{n}.weight", "F32", q.shape) for n, q in self.linears.items()}

    @property
    def linear_specs(self) -> Mapping[str, LinearSpec]:
        return {name: LinearSpec.of(q) for name, q in self.linears.items()}

    def qlinear(self, linear: str) -> QLinear:
        return self.linears[linear]

    def read(self, name: str) -> torch.Tensor:
        linear = name.removesuffix(".weight")
        array = self.linears[linear].dequantize() if linear in self.linears else self.floats[name]
        return torch.from_numpy(array)

    def chunks(self, name: str) -> Iterator[npt.NDArray[np.uint8]]:
        yield round_to(self.floats[name], self.dtype)


def random_linear(
    shape: tuple[int, int], bits: int, group_size: int, rng: np.random.Generator, symmetric: bool = True
) -> QLinear:
    """Codes of all sizes, scales of both signs that float16 and bfloat16 hold, outputs about as large as inputs."""
    out, columns = shape
    groups = 1 if group_size == -1 else columns // group_size
    codes = rng.integers(0, 2**bits, shape, dtype=np.uint8)
    size = (
        2.0 ** -(bits - 1) * columns**-0.5 * rng.uniform(0.8, 1.8, (out, groups)) * rng.choice([-1, 1], (out, groups))
    )
    word = size.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
    middle = np.full((out, groups), 2 ** (bits - 1), np.uint8)
    zero = middle if symmetric else rng.integers(0, 2**bits, (out, groups), dtype=np.uint8)
    group = (np.arange(columns) // (columns // groups)).astype(np.int32)
    return QLinear(codes, word.view(np.float32).astype(np.float16), zero, group, bits)


def decoder(
    model_type: str, bits: int = 4, group_size: int = 32, *, symmetric: bool = True, tied: bool = False, **config: Any
) -> Memory:
    """A tiny model whose decoder linears are quantized, with bits 0 in floats."""
    values = models.config(model_type, tie_word_embeddings=tied, **config)
    rng = np.random.default_rng(1)
    floats, linears = {}, {}
    for name, tensor in models.state(values).items():
        if bits and tensor.ndim == 2 and ".layers." in name:
            linear = name.removesuffix(".weight")
            linears[linear] = random_linear(tuple(tensor.shape), bits, group_size, rng, symmetric)
        else:
            floats[name] = tensor.bfloat16().float().numpy()
    side_files = {
        "generation_config.json": b'{"do_sample": true, "temperature": 0.6, "top_p": 0.95, "eos_token_id": [1, 3]}'
    }
    return Memory(values, floats, linears, side_files=side_files)


def reference(artifact: Memory) -> Any:
    """transformers' own model, with the factor of YaRN stated, since transformers takes another one."""
    from tests.independent import whole_model

    scaling = artifact.config.get("rope_scaling")
    if scaling and scaling["rope_type"] == "yarn":
        stated = scaling | {"attention_factor": rope.attention_factor(artifact.config)}
        artifact = replace(artifact, config=dict(artifact.config) | {"rope_scaling": stated})
    return whole_model(artifact)


def log_softmax(logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    return np.asarray(wide - np.log(np.exp(wide).sum(-1, keepdims=True)))


class Session:
    """A folder in onnxruntime, fed as onnxruntime-genai feeds it."""

    def __init__(self, folder: Path, level: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", str(level))
        self.session = onnxruntime.InferenceSession(folder / "model.onnx", options, ["CPUExecutionProvider"])
        self.past = [value for value in self.session.get_inputs() if value.name.startswith("past_key_values.")]

    def empty(self, batch: int = 1) -> dict[str, Any]:
        kind = np.float16 if "float16" in self.past[0].type else np.float32
        return {v.name: np.zeros((batch, v.shape[1], 0, v.shape[3]), kind) for v in self.past}

    def run(self, tokens: Any, mask: Any, past: dict[str, Any]) -> tuple[npt.NDArray[Any], dict[str, Any]]:
        """Logits, and the past of the next run."""
        feed = {"input_ids": np.atleast_2d(tokens).astype(np.int64), "attention_mask": np.atleast_2d(mask), **past}
        names = ["logits", *(value.name.replace("past_key_values", "present") for value in self.past)]
        logits, *present = self.session.run(names, feed)
        return logits, {value.name: array for value, array in zip(self.past, present, strict=True)}

    def scores(self, tokens: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """[n, vocabulary], all tokens at once."""
        result: npt.NDArray[Any] = self.run(tokens, np.ones((1, len(tokens)), np.int64), self.empty())[0][0]
        return result

    def one_by_one(self, tokens: npt.NDArray[np.int64], first: int) -> npt.NDArray[Any]:
        """The same with a cache: the first tokens at once, then each alone."""
        logits, past = self.run(tokens[:first], np.ones((1, first), np.int64), self.empty())
        rows = [logits[0]]
        for index in range(first, len(tokens)):
            logits, past = self.run(tokens[index], np.ones((1, index + 1), np.int64), past)
            rows.append(logits[0])
        return np.concatenate(rows)

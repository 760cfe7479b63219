"""The quantizations that readers are tried on, and the forms that each of them is exported to. Plain data.

A run is quantized once; all its variants hold the same integers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Run:
    """One quantization: `format` is what quantize writes, `options` are further ones of it.

    bits        of all linears; None where they differ, so as to come to `target_bpw` a weight
    """

    model: str
    bits: int | None
    group_size: int
    symmetric: bool = True
    method: str = "gptq"
    format: str = "gptq"
    target_bpw: float | None = None

    @property
    def name(self) -> str:
        kind = "" if self.symmetric else "-asym"
        bits = f"bpw{self.target_bpw:g}" if self.bits is None else f"w{self.bits}"
        return f"{self.model.rstrip('/').split('/')[-1]}-{bits}g{self.group_size}{kind}"

    @property
    def options(self) -> dict[str, Any]:
        keys = ("bits", "group_size", "symmetric", "method", "format", "target_bpw")
        chosen = {key: getattr(self, key) for key in keys if getattr(self, key) is not None}
        return chosen | ({"samples": 4, "seq_len": 256} if self.method == "gptq" else {})


@dataclass(frozen=True)
class Variant:
    """One form of a run. exact: whether every tensor is kept bit for bit, those that are not quantized too."""

    name: str
    format: str
    options: Mapping[str, Any] = field(default_factory=dict)
    exact: bool = True


@dataclass(frozen=True)
class Refused:
    """An export that must be refused: `words` of the message, for runs that are as the rest says."""

    variant: str
    words: str
    bits: int | None = None
    symmetric: bool | None = None
    group_size: int | None = None
    target_bpw: float | None = None

    def holds(self, run: Run, variant: str) -> bool:
        wanted = (self.bits, self.symmetric, self.group_size, self.target_bpw)
        found = (run.bits, run.symmetric, run.group_size, run.target_bpw)
        return self.variant == variant and all(w in (None, f) for w, f in zip(wanted, found, strict=True))


RUNS = (
    Run("smollm2", 4, 64),
    Run("tiny-r1", 4, 128),
    Run("tiny-r1", 4, 32, symmetric=False, format="compressed-tensors"),
    Run("tiny-r1", 4, 16, symmetric=False, method="rtn", format="compressed-tensors"),  # some zero points are 0
    Run("tiny-r1", 8, 128),
    Run("tiny-r1", 8, 64, symmetric=False, method="rtn"),
    Run("tiny-r1", None, 32, target_bpw=5),  # 4 and 8 bits
    Run("tiny-r1", None, 32, target_bpw=4.5, format="compressed-tensors"),  # 3 to 6 bits
)
ANY = (RUNS[1], RUNS[2], RUNS[4])  # of another model

VARIANTS = (
    Variant("gptq", "gptq"),
    Variant("gptq-v2", "gptq-v2"),
    Variant("awq", "awq"),
    Variant("compressed-tensors", "compressed-tensors"),
    Variant("compressed-tensors-int", "compressed-tensors-int"),
    Variant("onnx", "onnx"),
    Variant("onnx-qdq", "onnx", {"style": "qdq"}),
    Variant("onnx-int8", "onnx", {"accuracy_level": 4}),
    Variant("onnx-float16", "onnx", {"dtype": "float16"}, exact=False),
    Variant("gguf", "gguf"),
)

REFUSED = (
    Refused("awq", "4 bits, not 8", bits=8),
    Refused("awq", "4 bits, not 8", target_bpw=5),
    *(Refused(variant, "bits, not", target_bpw=4.5) for variant in ("gptq", "gptq-v2", "awq")),
    *(Refused("compressed-tensors-int", "8 bits, not", target_bpw=mean) for mean in (5, 4.5)),
    Refused("compressed-tensors-int", "8 bits, not 4", bits=4),
    Refused("gguf", "steps of the scale", bits=8, symmetric=False),
    Refused("gguf", "32", group_size=16),
    Refused("gptq", "zero point", bits=4, symmetric=False, group_size=16),
)


def runs_of(models: tuple[str, ...]) -> list[Run]:
    """The runs of the models named; all where none is. A model that has none gets those of ANY."""
    if not models:
        return list(RUNS)
    known = {run.model for run in RUNS}
    found = [run for run in RUNS if run.model in models]
    return found + [replace(run, model=model) for model in models if model not in known for run in ANY]

"""Targets: the formats an artifact can be exported to, with the options of each, and which of them a grid fits.

Known from forms alone: no weight is read, and neither onnx nor gguf is imported.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1quant.arch.tables import Architecture
from r1quant.checkpoint.artifact import LinearSpec
from r1quant.errors import RecipeError
from r1quant.formats.codec import other_kind
from r1quant.formats.gguf.options import K_QUANTS, GgufOptions
from r1quant.formats.gguf.options import problem as gguf_problem
from r1quant.formats.onnx.options import OnnxOptions
from r1quant.formats.onnx.options import problem as onnx_problem
from r1quant.formats.onnx.options import unsupported as onnx_unsupported
from r1quant.formats.table import CODECS
from r1quant.registry import FORMATS

DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
TABLES = ("exact", "f16", "q8_0")
GUIDED, PLAIN, NONE = "guided", "plain", "none"
MATRICES = (GUIDED, PLAIN, NONE)  # of importance; anything else names a file
# Which formats an option is for; the others do not know it.
ONLY_FOR: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("type", "split_bytes", "pre", "imatrix", "calib", "samples", "seq_len", "seed"), ("gguf",)),
    **dict.fromkeys(("style", "accuracy_level", "zero_points", "threads"), ("onnx",)),
    **dict.fromkeys(("embedding", "head"), ("gguf", "onnx")),
    "dtype": ("safetensors", *CODECS, "onnx"),
}


@dataclass(frozen=True)
class ExportOptions:
    """How it is written, beyond the format.

    type              of GGUF: auto (exact), a block or float type, or a K-quant such as Q4_K_M (a requantization)
    dtype             floats of safetensors and activations of ONNX: float16, bfloat16, float32; None keeps the stored
                      dtype (safetensors) or takes float32 (ONNX)
    embedding, head   exact, f16 or q8_0; None is exact, or what a float `type` of GGUF says for the whole file
    style             of ONNX: matmulnbits or qdq
    accuracy_level    of ONNX's MatMulNBits: 0 .. 4; None takes the default
    zero_points       of ONNX: write those of symmetric grids too, which DirectML wants
    threads           of onnxruntime-genai; 0 leaves it to the runtime
    split_bytes       of GGUF: about how large a part may become
    pre               of GGUF: the pre-tokenizer's name, where it cannot be told
    imatrix           of K-quants: guided (measured, each token counts by the norm of its gradient), plain (measured,
                      all count alike), none, or the file of an importance matrix that is there already
    calib, samples, seq_len, seed    of K-quants: the text that importance is measured on, as in a recipe
    """

    type: str = "auto"
    dtype: str | None = None
    embedding: str | None = None
    head: str | None = None
    style: str = "matmulnbits"
    accuracy_level: int | None = None
    zero_points: bool = False
    threads: int = 0
    split_bytes: int | None = None
    pre: str | None = None
    imatrix: str = GUIDED
    calib: str | None = None
    samples: int = 64
    seq_len: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises RecipeError naming the first value that is not possible."""
        if self.dtype is not None and self.dtype not in DTYPES:
            raise RecipeError(f"dtype {self.dtype!r} is not supported", f"choose from {', '.join(DTYPES)}")
        for name in ("embedding", "head"):
            if getattr(self, name) not in (None, *TABLES):
                wrong = f"{name} {getattr(self, name)!r} is not supported"
                raise RecipeError(wrong, f"choose from {', '.join(TABLES)}")
        if self.samples < 1 or self.seq_len < 2:
            raise RecipeError(f"samples {self.samples} x seq-len {self.seq_len} is no text", "use at least 1 x 2")
        if self.imatrix not in MATRICES and not Path(self.imatrix).is_file():
            wrong = f"there is no importance matrix {self.imatrix!r}"
            raise RecipeError(wrong, f"use {', '.join(MATRICES)}, or name a file of llama.cpp's llama-imatrix")
        if self.k_quant is None:
            self.gguf  # noqa: B018  (says what is wrong with the type)
        self.onnx  # noqa: B018

    def require(self, formats: Iterable[str]) -> None:
        """Raises RecipeError for an option that says nothing to any of the formats, or that one cannot follow."""
        formats, plain = list(formats), ExportOptions()
        for name, those in ONLY_FOR.items():
            if getattr(self, name) != getattr(plain, name) and not set(those) & set(formats):
                wrong = f"{name.replace('_', '-')} is an option of {', '.join(those)}, not of {', '.join(formats)}"
                raise RecipeError(wrong, "leave it out")
        if "onnx" in formats and self.dtype == "bfloat16":
            raise RecipeError("ONNX is not written in bfloat16", "use --dtype float32 or float16")
        if "onnx" in formats and "f16" in (self.embedding, self.head):
            raise RecipeError("ONNX has embedding and head exact or as q8_0", "use --dtype float16 for all floats")

    @property
    def k_quant(self) -> str | None:
        """The type of llama.cpp's own that is asked for; None where ours is."""
        return self.type.upper() if self.type.upper() in K_QUANTS else None

    @property
    def gguf(self) -> GgufOptions:
        tables = {key: getattr(self, key) for key in ("embedding", "head") if getattr(self, key) is not None}
        return GgufOptions(self.type.lower(), split_bytes=self.split_bytes, pre=self.pre, **tables)

    @property
    def onnx(self) -> OnnxOptions:
        """bfloat16 is no dtype of it, and is refused when ONNX is written."""
        chosen: dict[str, Any] = {"style": self.style, "zero_points": self.zero_points, "threads": self.threads}
        if self.dtype in ("float16", "float32"):
            chosen["dtype"] = self.dtype
        if self.accuracy_level is not None:
            chosen["accuracy_level"] = self.accuracy_level
        chosen |= {key: "q8" for key in ("embedding", "head") if getattr(self, key) == "q8_0"}
        return OnnxOptions(**chosen)


def problem(format: str, form: LinearSpec, options: ExportOptions) -> str | None:
    """Why a format cannot hold a quantized linear of this form exactly; None where it can."""
    if format == "safetensors":
        return None
    other = other_kind(format, form.kind)
    if other is not None:
        return other
    if format == "onnx":
        return onnx_problem(form, options.onnx)
    if format == "gguf":
        return None if options.k_quant else gguf_problem(form, options.type.lower())
    return CODECS[format].problem(form)


def family_problem(format: str, arch: Architecture) -> str | None:
    """Why a format cannot hold a family of models at all; None where it can."""
    return onnx_unsupported(arch) if format == "onnx" else None


def fitting(linear_specs: Iterable[LinearSpec], options: ExportOptions) -> list[str]:
    """The formats that hold all of these linears exactly."""
    kinds = set(linear_specs)
    return [name for name in FORMATS if not any(problem(name, form, options) for form in kinds)]

"""Targets: the formats an artifact can be exported to, with the options of each, and which of them a grid fits.

Known from forms alone: no weight is read, and neither onnx nor gguf is imported.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from r1quant.arch.tables import Architecture
from r1quant.checkpoint.artifact import LinearSpec
from r1quant.core.grid import UNIFORM
from r1quant.core.options import OneOf, Size, Text, Within, check, option
from r1quant.errors import RecipeError
from r1quant.formats.codec import other_kind
from r1quant.formats.evenly import HALF_BITS, has_offsets, spec_of, uneven
from r1quant.formats.gguf.options import K_QUANTS, TYPES, GgufOptions
from r1quant.formats.gguf.options import problem as gguf_problem
from r1quant.formats.onnx.options import OnnxOptions
from r1quant.formats.onnx.options import problem as onnx_problem
from r1quant.formats.onnx.options import unsupported as onnx_unsupported
from r1quant.formats.table import CODECS
from r1quant.recipe import ENOUGH_TEXT
from r1quant.registry import FORMATS

FLOATS, GGUF, KQUANTS, ONNX = "Floats", "GGUF", "Importance for K-quants of GGUF", "ONNX"
DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
TABLES = ("exact", "f16", "q8_0")
GUIDED, PLAIN, NONE = "guided", "plain", "none"
MIX = "mix:"  # before the name of a file, as a type
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
    """How a model is written, beyond the format. Left at its default, an option says nothing to a format."""

    type: str = option(
        "auto",
        GGUF,
        "Type of the weights in GGUF: auto (the smallest exact one), q4_0, q8_0, bf16, ...; or, rounded anew by "
        "llama.cpp, a K-quant such as Q4_K_M, or mix:FILE, the types that a budget chose (FILE is its r1quant.json) or "
        "that lines NAME=TYPE say.",
        Text("name a type such as auto, q8_0 or Q4_K_M", suggestions=(*TYPES, *K_QUANTS)),
    )
    dtype: str | None = option(
        None,
        FLOATS,
        "Precision of the floats in safetensors, and of activations in ONNX.",
        OneOf(tuple(DTYPES)),
        shown="as stored; float32 in ONNX",
    )
    embedding: str | None = option(
        None,
        FLOATS,
        "How the embedding is written in GGUF and ONNX.",
        OneOf(TABLES),
        shown="exact, or the --type of a GGUF file of floats",
    )
    head: str | None = option(
        None,
        FLOATS,
        "How the output projection is written in GGUF and ONNX.",
        OneOf(TABLES),
        shown="exact, or the --type of a GGUF file of floats",
    )
    style: str = option(
        "matmulnbits",
        ONNX,
        "Operators in ONNX: onnxruntime's own MatMulNBits, which is fast, or the standard ones of qdq.",
        OneOf(("matmulnbits", "qdq")),
        flag="--onnx-style",
    )
    accuracy_level: int | None = option(
        None,
        ONNX,
        "What MatMulNBits computes with: 1 is float32; 4 is int8, faster and less exact; 0 is the runtime's choice.",
        OneOf((0, 1, 2, 3, 4)),
        shown=str(OnnxOptions.accuracy_level),
    )
    zero_points: bool = option(False, ONNX, "Write the zero points of symmetric grids too, which DirectML wants.")
    threads: int = option(
        0, ONNX, "Threads that onnxruntime-genai is told to take; 0 leaves it to the runtime.", Within(0, 65535)
    )
    split_bytes: int | None = option(
        None, GGUF, "Split the GGUF file into parts of about this size, such as 4GB.", Size(), shown="one file"
    )
    pre: str | None = option(
        None, GGUF, "Name of the pre-tokenizer in GGUF, if it cannot be told from the tokenizer.", Text(), shown=""
    )
    imatrix: str = option(
        GUIDED,
        KQUANTS,
        "Importance of the weights: guided (measured, each token counts by its gradient), plain (measured, "
        "all tokens count alike), none, or the file of an importance matrix.",
        Text("choose from guided, plain and none, or name a file of llama.cpp's llama-imatrix", suggestions=MATRICES),
    )
    calib: str | None = option(
        None,
        KQUANTS,
        "Text that importance is measured on: a text or JSONL file, or hub:NAME for a dataset.",
        Text("give the name of a file, or hub:NAME"),
        shown="the bundled text",
    )
    samples: int = option(64, KQUANTS, "Number of calibration windows.", Within(1, need=ENOUGH_TEXT))
    seq_len: int = option(512, KQUANTS, "Tokens in each calibration window.", Within(2, need=ENOUGH_TEXT))
    seed: int = option(0, KQUANTS, "Seed of the shuffle that chooses the calibration windows.", Within(0))

    def __post_init__(self) -> None:
        """Raises RecipeError naming the first value that is not possible."""
        check(self)
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
        """The type of llama.cpp's own that is asked for, MIX for a type for each tensor; None if ours is."""
        if self.mix is not None:
            return "MIX"
        return self.type.upper() if self.type.upper() in K_QUANTS else None

    @property
    def mix(self) -> Path | None:
        """The file that gives each tensor a type, if one is named."""
        return Path(self.type.removeprefix(MIX)) if self.type.startswith(MIX) else None

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


class ExportArguments(TypedDict, total=False):
    """The fields of ExportOptions as named arguments."""

    type: str
    dtype: str | None
    embedding: str | None
    head: str | None
    style: str
    accuracy_level: int | None
    zero_points: bool
    threads: int
    split_bytes: int | None
    pre: str | None
    imatrix: str
    calib: str | None
    samples: int
    seq_len: int
    seed: int


def problem(format: str, form: LinearSpec, options: ExportOptions) -> str | None:
    """Why a format cannot hold a quantized linear of this form exactly; None if it can."""
    if format == "safetensors":
        return None
    if format == "gguf":
        return None if options.k_quant else gguf_problem(form, options.type.lower())
    if format == "onnx" and (form.type is not None or form.kind == UNIFORM):
        return onnx_problem(form, options.onnx)
    if form.type is not None:
        return _blocks_problem(format, form)
    if other := other_kind(format, form.kind):
        return other
    return CODECS[format].problem(form)


def _blocks_problem(format: str, form: LinearSpec) -> str | None:
    """Why a format of the uniform grid cannot hold blocks of GGUF; None if it can."""
    even = spec_of(form)
    if even is None:
        return uneven(form)
    if has_offsets(form):
        return f"only onnx and gguf hold {form.type} blocks, which add float minima"
    if even.scale_bits > HALF_BITS:
        return f"only onnx and gguf hold {form.type} blocks, whose scales float16 cannot hold"
    return CODECS[format].problem(even)


def family_problem(format: str, arch: Architecture) -> str | None:
    """Why a format cannot hold a family of models at all; None if it can."""
    return onnx_unsupported(arch) if format == "onnx" else None


def fitting(linear_specs: Iterable[LinearSpec], options: ExportOptions) -> list[str]:
    """The formats that hold all of these linears exactly."""
    kinds = set(linear_specs)
    return [name for name in FORMATS if not any(problem(name, form, options) for form in kinds)]

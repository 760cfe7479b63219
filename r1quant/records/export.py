"""What export says of the model it wrote: r1quant.json in its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from r1quant.records.fields import Settings, stored
from r1quant.records.quantization import CalibrationText
from r1quant.records.record import Record

ONLY_IF_KNOWN = stored(omit=True)


@dataclass(frozen=True)
class ExportedFrom:
    """The artifact whose weights these are, and the format it has."""

    name: str
    format: str


@dataclass(frozen=True)
class QuantizedBy:
    """Of the record of the artifact that was exported: what it was made from, and how."""

    model: str | None = field(default=None, metadata=ONLY_IF_KNOWN)
    recipe: Settings | None = field(default=None, metadata=ONLY_IF_KNOWN)
    calibration: CalibrationText | None = field(default=None, metadata=ONLY_IF_KNOWN)


@dataclass(frozen=True)
class ImportanceFile:
    """The importance matrix by which K-quants were rounded; what follows `file` is known if export measured it.

    tokens  how they counted: plain or guided
    """

    file: str
    tokens: str | None = field(default=None, metadata=ONLY_IF_KNOWN)
    source: str | None = field(default=None, metadata=ONLY_IF_KNOWN)
    sha256: str | None = field(default=None, metadata=ONLY_IF_KNOWN)
    samples: int | None = field(default=None, metadata=ONLY_IF_KNOWN)
    seq_len: int | None = field(default=None, metadata=ONLY_IF_KNOWN)


@dataclass(frozen=True)
class GgufTypes:
    """The type that a GGUF file is named after, and how many tensors have each type."""

    type: str
    types: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Requantization:
    """What llama.cpp rounded again. fallbacks: tensors that got another type than was asked for."""

    requantized: bool
    fallbacks: Mapping[str, str] = field(default_factory=dict)
    imatrix: ImportanceFile | None = None


@dataclass(frozen=True)
class ExportDetails:
    """What only some formats have: gguf and requantization a GGUF file, options an ONNX model."""

    gguf: GgufTypes | None = field(default=None, metadata=stored(inline=True))
    requantization: Requantization | None = field(default=None, metadata=stored(inline=True))
    options: Settings | None = field(default=None, metadata=ONLY_IF_KNOWN)


@dataclass(frozen=True)
class Export(Record):
    """The record of a folder that export wrote.

    inexact  tensors that were rounded, with the reason
    source   the float model as seen from the folder, or its Hub id; None if it is not known
    """

    SCHEMA: ClassVar[str] = "r1quant.export/1"

    format: str
    exported_from: ExportedFrom | None
    exact: bool
    inexact: Mapping[str, str] = field(default_factory=dict)
    details: ExportDetails = field(default=ExportDetails(), metadata=stored(inline=True))
    source: str | None = field(default=None, metadata=ONLY_IF_KNOWN)
    quantization: QuantizedBy | None = None

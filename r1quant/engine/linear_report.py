"""One linear after rounding, with the report of how it fared. No torch: plan reads this too."""

from __future__ import annotations

from dataclasses import dataclass

from r1quant.core.qlinear import QuantizedLinear
from r1quant.records.quantization import LinearReport


@dataclass(frozen=True, eq=False)
class Rounded:
    name: str
    qlinear: QuantizedLinear
    report: LinearReport

"""One linear after rounding, and how it fared. No torch: plan reads this too."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from r1quant.core.qlinear import QuantizedLinear


@dataclass(frozen=True)
class LinearReport:
    """How one linear fared. Nothing that fell back or was repaired goes unsaid.

    loss            mean over tokens of |x W^T - x Q^T|^2 on the calibration inputs; None without calibration
    relative_loss   loss over the mean of |x W^T|^2; without calibration |W - Q|^2 over |W|^2
    damping         share of the mean diagonal added to the Hessian; None without calibration
    raised          whether that is more than the recipe asked for
    dead_columns    input channels that were zero in every token
    rows_nearest    rows where plain rounding cost less and was taken
    fallback        whether the Hessian could not be factored, so that all was rounded to nearest
    predicted_kl    the KL divergence per token in nats that this linear's error costs, as the sensitivity pass has it;
                    None without one
    """

    name: str
    loss: float | None
    relative_loss: float
    damping: float | None
    dead_columns: int
    rows_nearest: int
    fallback: bool
    predicted_kl: float | None = None
    raised: bool = False

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def remark(self) -> str | None:
        """A line for the user where something was not as usual."""
        remarks = []
        if self.fallback:
            remarks.append("the Hessian could not be factored: rounded to nearest")
        elif self.raised:
            remarks.append(f"damping raised to {self.damping:g}")
        if self.dead_columns:
            remarks.append(f"{self.dead_columns} dead input columns")
        if self.rows_nearest and not self.fallback:
            remarks.append(f"{self.rows_nearest} rows rounded to nearest")
        return f"{self.name}: {'; '.join(remarks)}" if remarks else None


@dataclass(frozen=True, eq=False)
class Rounded:
    name: str
    qlinear: QuantizedLinear
    report: LinearReport

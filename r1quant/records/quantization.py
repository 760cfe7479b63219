"""What quantize says of the model it made: r1quant.json in its folder; and of the run that made it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from r1quant.records.fields import Settings, stored
from r1quant.records.record import Record

ABOUT = stored(measured=False)


@dataclass(frozen=True)
class Compute:
    """Where and in what precision the float model ran."""

    device: str
    dtype: str


@dataclass(frozen=True)
class CalibrationText:
    """samples windows of seq_len tokens, cut from so many documents; requested_samples: how many were asked for."""

    source: str
    sha256: str
    samples: int | None = None
    requested_samples: int | None = None
    seq_len: int | None = None
    documents: int | None = None


@dataclass(frozen=True)
class ChosenBits:
    """What a budget was spent on.

    bits          of each linear, 16 for one in float; empty if types were chosen
    source        what the predictions are from
    predicted_kl  the KL divergence that this is predicted to cost, in nats
    gap           how much less could be lost at most
    types         the type of GGUF of each matrix, embedding and head among them
    arguments     what has llama-quantize choose the same types
    """

    bits: Mapping[str, int] = field(default_factory=dict)
    source: str | None = None
    predicted_kl: float | None = None
    gap: float | None = None
    types: Mapping[str, str] | None = field(default=None, metadata=stored(omit=True))
    arguments: tuple[str, ...] | None = field(default=None, metadata=stored(omit=True))


@dataclass(frozen=True)
class LinearReport:
    """How one linear fared. Nothing that fell back or was repaired goes unsaid.

    loss           mean over tokens of |x W^T - x Q^T|^2 on the calibration inputs; None without calibration
    relative_loss  loss over the mean of |x W^T|^2; without calibration |W - Q|^2 over |W|^2
    damping        share of the mean diagonal added to the Hessian; None without calibration
    dead_columns   input channels that were zero in every token
    rows_nearest   rows for which plain rounding cost less and was taken
    fallback       whether the Hessian could not be factored, so that all was rounded to nearest
    predicted_kl   the KL divergence that this error is predicted to cost, in nats per token
    raised         whether damping is more than the recipe asked for
    """

    name: str
    loss: float | None
    relative_loss: float
    damping: float | None = None
    dead_columns: int = 0
    rows_nearest: int = 0
    fallback: bool = False
    predicted_kl: float | None = None
    raised: bool = False

    @property
    def remark(self) -> str | None:
        """A line for the user if something was not as usual."""
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


@dataclass(frozen=True)
class Changed:
    """A version, a number of threads or the like that was another when an interrupted run went on."""

    name: str
    before: str | None = None
    after: str | None = None


@dataclass(frozen=True)
class Quantization(Record):
    """The record of a quantized model. Nothing in it depends on when, or in how many starts, it was made, but for
    `changed_on_resume`.

    source        a Hub id, or the path of the float model as seen from the output
    weights       sha256 of each weight file of the float model; config and tokenizer: of these
    recipe        options by name
    compute       None if no float model ran
    predicted_kl  in nats per token; None if nothing predicted it
    fallbacks     a line for each linear with which something was not as usual
    changed_on_resume  what the user let change while the run was interrupted; None if nothing did
    """

    SCHEMA: ClassVar[str] = "r1quant.quantization/1"

    model: str | None = None
    source: str | None = None
    architecture: str | None = None
    weights: Mapping[str, str] = field(default_factory=dict)
    config: str | None = None
    tokenizer: str | None = None
    recipe: Settings = field(default_factory=dict, metadata=ABOUT)
    compute: Compute | None = None
    allocation: ChosenBits | None = field(default=None, metadata=ABOUT)
    calibration: CalibrationText | None = field(default=None, metadata=ABOUT)
    environment: Mapping[str, str] = field(default_factory=dict)
    bits_per_weight: float | None = None
    quantized_parameters: int | None = None
    predicted_kl: float | None = None
    fallbacks: tuple[str, ...] = ()
    changed_on_resume: tuple[Changed, ...] | None = field(default=None, metadata=stored(omit=True))
    linears: tuple[LinearReport, ...] = ()


@dataclass(frozen=True)
class RunPrediction:
    """What the plan said before the run. Output bytes are exact; the others come from a cost model."""

    output_bytes: int | None = None
    run_bytes: int | None = None
    peak_rss_bytes: int | None = None
    seconds: float | None = None
    cache_bytes: int | None = None
    kept_bytes: int | None = None


@dataclass(frozen=True)
class QuantizeRun(Record):
    """The record of a run of quantize. seconds and memory are of its last start alone.

    resumed_layers    layers that an earlier start had finished
    already_complete  whether the output was there before
    config            config.json of the output
    """

    SCHEMA: ClassVar[str] = "r1quant.quantize/1"

    out: str = ""
    record: Quantization = field(default=Quantization())
    seconds: float | None = None
    peak_rss_bytes: int | None = None
    bits_per_weight: float | None = None
    linears: tuple[LinearReport, ...] = ()
    resumed_layers: int | None = None
    already_complete: bool | None = None
    output_bytes: int | None = None
    predicted: RunPrediction | None = None
    config: Any = field(default=None, metadata=ABOUT)

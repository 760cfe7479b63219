"""From what bench timed to what its record says of it: the headline, the order, and a card of 40 GB beside it.

It starts nothing, and reads of a model only its headers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from r1quant.arch.tables import architecture_of
from r1quant.checkpoint.artifact import Artifact
from r1quant.core.grid import UNIFORM
from r1quant.hardware import roofline
from r1quant.hardware.cards import card
from r1quant.jobs.identity import weight_files
from r1quant.records.bench import BenchRow, ModelSizes, Reference, ReferenceRow, ReferenceSpeed, Spread, Timing

MEASURED = "measured"


@dataclass(frozen=True)
class Headline:
    """What comes first in the record: the medians of one model at one load, and its memory."""

    prefill_tokens_per_second: float | None
    decode_tokens_per_second: float | None
    ttft_seconds: float | None
    peak_memory_bytes: int | None


def headline(timing: Timing) -> Headline:
    speeds = timing.speeds
    return Headline(
        _median(speeds.prefill_tokens_per_second),
        _median(speeds.decode_tokens_per_second),
        _median(speeds.ttft_seconds),
        timing.peak_memory_bytes,
    )


def order(rows: Sequence[BenchRow]) -> str:
    """Whether the models took turns."""
    turns = {row.turns for row in rows}
    if turns == {None}:
        return "alone"
    return "in turn" if turns == {True} else "in turn where memory holds both"


def reference(artifact: Artifact, rows: Sequence[BenchRow]) -> Reference:
    """The 16-bit model on a card of 40 GB at every load: measured if that is what was measured, else modelled."""
    baselines = [row.baseline for row in rows if row.baseline is not None and _on_forty(row.baseline)]
    if len(baselines) == len(rows):
        measured = tuple(
            ReferenceRow(*row.load, _measured(baseline), _measured(row.quantized))
            for row, baseline in zip(rows, baselines, strict=True)
        )
        first = baselines[0]
        return Reference(first.card.name if first.card else "", MEASURED, first.dtype, rows=measured)
    known, arch = card("A100 40GB"), architecture_of(artifact.config)
    floats, stored = roofline.sizes(artifact.config, arch), stored_sizes(artifact)
    modelled = tuple(
        ReferenceRow(*row.load, *(_modelled(roofline.model(of, known, *row.load)) for of in (floats, stored)))
        for row in rows
    )
    return Reference(known.name, roofline.SOURCE, "float16", roofline.assumptions(), modelled)


def _measured(timing: Timing) -> ReferenceSpeed:
    """One model at one load in the words of the roofline."""
    speeds = timing.speeds
    return ReferenceSpeed(
        MEASURED,
        _median(speeds.ttft_seconds),
        _median(speeds.prefill_tokens_per_second),
        _median(speeds.decode_tokens_per_second),
        timing.peak_memory_bytes,
    )


def _modelled(modelled: roofline.Modelled) -> ReferenceSpeed:
    return ReferenceSpeed(source=roofline.SOURCE, **vars(modelled))


def stored_sizes(artifact: Artifact) -> roofline.Sizes:
    """As the model is stored. A GGUF file with other grids than the uniform one, whose embedding and head mostly have
    some, too, is taken at its own size, evenly spread."""
    specs = artifact.linear_specs
    if artifact.format != "gguf" or (specs and all(spec.kind == UNIFORM for spec in specs.values())):
        return roofline.sizes(artifact.config, architecture_of(artifact.config), specs)
    sizes = roofline.sizes(artifact.config, architecture_of(artifact.config))
    stored = sum(path.stat().st_size for path in weight_files(artifact))
    return replace(
        sizes, weights_bytes=stored, streamed_bytes=round(sizes.streamed_bytes * stored / sizes.weights_bytes)
    )


def stated_sizes(artifact: Artifact) -> ModelSizes:
    """What tells one model from another, and how large its weight files are."""
    sizes = roofline.sizes(artifact.config, architecture_of(artifact.config))
    stored = sum(path.stat().st_size for path in weight_files(artifact))
    return ModelSizes(stored, sizes.layers, sizes.layer_weights, sizes.head_weights)


def _on_forty(timing: Timing) -> bool:
    """Whether this was a 16-bit model on a card of 40 GB."""
    return timing.card is not None and timing.dtype in roofline.DTYPES and 38e9 <= timing.card.memory_bytes <= 44e9


def _median(spread: Spread | None) -> float | None:
    return None if spread is None else spread.median

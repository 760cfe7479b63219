"""From what bench timed to what its record says of it: the headline, the order, and a card of 40 GB beside it.

It starts nothing, and reads of a model only its headers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from r1quant.arch.tables import architecture_of
from r1quant.checkpoint.artifact import Artifact
from r1quant.hardware import roofline
from r1quant.hardware.cards import card
from r1quant.jobs.identity import weight_files

SPEEDS = ("prefill_tokens_per_second", "decode_tokens_per_second", "ttft_seconds")
POINT = ("prompt_tokens", "new_tokens", "batch")  # what tells one load from another


def headline(side: Mapping[str, Any]) -> dict[str, Any]:
    """What comes first in the record: the medians of one model at one load, and its memory."""
    return {**{key: _median(side[key]) for key in SPEEDS}, "peak_memory_bytes": side["peak_memory_bytes"]}


def order(rows: Sequence[Mapping[str, Any]]) -> str:
    """Whether the models took turns."""
    turns = {row["turns"] for row in rows}
    if turns == {None}:
        return "alone"
    return "in turn" if turns == {True} else "in turn where memory holds both"


def reference(artifact: Artifact, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The 16-bit model on a card of 40 GB at every load: measured where that is what was measured, else modelled."""
    points = [{key: row[key] for key in POINT} for row in rows]
    if all(_on_forty(row["baseline"]) for row in rows):
        sides = [{name: _measured(row[name]) for name in ("baseline", "quantized")} for row in rows]
        first = rows[0]["baseline"]
        told = {"card": first["card"]["name"], "source": "measured", "dtype": first["dtype"]}
    else:
        known, arch = card("A100 40GB"), architecture_of(artifact.config)
        sizes = {"baseline": roofline.sizes(artifact.config, arch), "quantized": stored_sizes(artifact)}
        sides = [
            {name: roofline.model(of, known, *point.values()).as_dict() for name, of in sizes.items()}
            for point in points
        ]
        told = {"card": known.name, "source": roofline.SOURCE, "dtype": "float16"}
        told["assumptions"] = roofline.assumptions()
    return {**told, "rows": [{**point, **both} for point, both in zip(points, sides, strict=True)]}


def _measured(side: Mapping[str, Any]) -> dict[str, Any]:
    """One model at one load in the words of the roofline."""
    speeds = {key: _median(side[key]) for key in SPEEDS}
    return {"source": "measured", **speeds, "total_bytes": side["peak_memory_bytes"]}


def stored_sizes(artifact: Artifact) -> roofline.Sizes:
    """As the model is stored. A GGUF file whose blocks are no QLinears is taken at its own size, evenly spread."""
    made = roofline.sizes(artifact.config, architecture_of(artifact.config), artifact.linear_specs)
    if artifact.format != "gguf" or artifact.linear_specs:
        return made
    stored = sum(path.stat().st_size for path in weight_files(artifact))
    return replace(made, weights_bytes=stored, streamed_bytes=round(made.streamed_bytes * stored / made.weights_bytes))


def stated_sizes(artifact: Artifact) -> dict[str, int]:
    """What tells one model from another, and how large its weight files are."""
    made = roofline.sizes(artifact.config, architecture_of(artifact.config))
    files = weight_files(artifact)
    return {
        "weights_bytes": sum(path.stat().st_size for path in files),
        **{key: getattr(made, key) for key in ("layers", "layer_weights", "head_weights")},
    }


def _on_forty(side: Mapping[str, Any] | None) -> bool:
    """Whether this was a 16-bit model on a card of 40 GB."""
    if side is None or side["card"] is None:
        return False
    return side["dtype"] in roofline.DTYPES and 38e9 <= side["card"]["memory_bytes"] <= 44e9


def _median(found: Mapping[str, float] | None) -> float | None:
    return None if found is None else found["median"]

"""Puts a finished run together as the output folder: weight shards, index, configuration, tokenizer, record.

Each file is written whole or not at all, and one that exists is complete, so this too can be interrupted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from r1quant import atomic, provenance
from r1quant.formats import gptq
from r1quant.jobs import parts
from r1quant.planner import Plan
from r1quant.rundir import RunDir
from r1quant.tensorfile import TensorSpec, write

RECORD = "r1quant.json"
INDEX = "model.safetensors.index.json"


def build(run: RunDir, made: Plan, origin: Mapping[str, Any]) -> dict[str, Any]:
    """Writes everything into run.output. Returns the record."""
    out = run.output
    out.mkdir(exist_ok=True)
    contents = _Contents(run, made)
    for index, shard in enumerate(made.shards):
        path = out / made.shard_name(index)
        if not path.exists():
            write(path, shard, {"format": "pt"}, [contents.of(spec) for spec in shard])
    if len(made.shards) > 1:
        atomic.write_bytes(out / INDEX, _index(made))
    for name, content in made.checkpoint.carried.items():
        atomic.write_bytes(out / name, content)
    recipe = made.recipe
    damping = recipe.damping if recipe.calibrated else None
    act_order = recipe.act_order and recipe.calibrated
    stated = gptq.config(recipe.grid, damping, act_order, f"r1quant:{provenance.VERSION}")
    atomic.write_bytes(out / "config.json", with_config(made.checkpoint.config_text, stated).encode())
    atomic.write_bytes(out / "quantize_config.json", (json.dumps(stated, indent=2) + "\n").encode())
    record = _record(run, made, origin)
    atomic.write_bytes(out / RECORD, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())
    return record


def with_config(text: str, stated: Mapping[str, Any]) -> str:
    """config.json as it was, byte for byte, with quantization_config as its last key."""
    body, brace, end = text.rpartition("}")
    body = body.rstrip()
    comma = "" if body.endswith("{") else ","
    block = json.dumps(stated, indent=2).replace("\n", "\n  ")
    return f'{body}{comma}\n  "quantization_config": {block}\n{brace}{end}'


class _Contents:
    """The bytes of every output tensor, made when asked for. Holds one encoded linear at a time."""

    def __init__(self, run: RunDir, made: Plan) -> None:
        self._run, self._checkpoint = run, made.checkpoint
        self._layer_of = {linear.name: linear.layer for linear in made.linears}
        self._held: tuple[str, Mapping[str, npt.NDArray[Any]]] = ("", {})

    def of(self, spec: TensorSpec) -> Callable[[], Iterable[npt.NDArray[Any]]]:
        linear, _, suffix = spec.name.rpartition(".")
        if linear in self._layer_of and suffix in gptq.SUFFIXES:
            return lambda: (self._encoded(linear)[suffix],)
        return lambda: self._checkpoint.chunks(self._checkpoint.info(spec.name))

    def _encoded(self, linear: str) -> Mapping[str, npt.NDArray[np.generic]]:
        if self._held[0] != linear:
            self._held = (linear, gptq.encode(parts.read(self._run.part(self._layer_of[linear]), linear)))
        return self._held[1]


def _index(made: Plan) -> bytes:
    total = sum(spec.nbytes for shard in made.shards for spec in shard)
    weight_map = {spec.name: made.shard_name(i) for i, shard in enumerate(made.shards) for spec in shard}
    return (json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2) + "\n").encode()


def _record(run: RunDir, made: Plan, origin: Mapping[str, Any]) -> dict[str, Any]:
    """What OUT says about itself. Nothing in it depends on when, or in how many starts, it was made."""
    reports = [report for layer in range(made.layers) for report in parts.reports(run.part(layer))]
    return {
        "schema": "r1quant.quantization/1",
        **origin,
        "environment": provenance.environment(),
        "bits_per_weight": made.bits_per_weight,
        "quantized_parameters": made.quantized_parameters,
        "fallbacks": [report.remark for report in reports if report.remark],
        "linears": [report.as_dict() for report in reports],
    }

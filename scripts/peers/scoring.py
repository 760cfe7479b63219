"""How good and how large a result is, by one measure for all: `r1quant verify` in float32, and the bytes of linears."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measuring import R1QUANT, run

from peers.texts import Text
from r1quant.checkpoint.resolve import open_model
from r1quant.checkpoint.safetensors import TensorInfo

FLOATS = {"F64", "F32", "F16", "BF16"}
KL = ("mean", "mean_ci95", "median", "p99", "max")


@dataclass(frozen=True)
class Measure:
    """The texts that results are measured on, in windows of `seq_len` tokens. cache: where baselines are kept."""

    texts: tuple[Text, ...]
    windows: int
    seq_len: int
    cache: Path


def score(out: Path, model: Path, text: Text, measure: Measure, place: Path | None = None) -> dict[str, Any]:
    """What verify says of a folder or file that r1quant reads, held against the float model in `model`.

    place  what log and record are written beside, if not `out`
    """
    place = place or out
    found = place.with_name(f"{place.name}-verify.json")
    shape = ["--windows", str(text.windows or measure.windows), "--seq-len", str(measure.seq_len)]
    wanted = ["--baseline", str(model), *text.after("--text"), *shape, "--dtype", "float32", "--device", "cpu"]
    variables = {"R1QUANT_CACHE": str(measure.cache)}
    log = place.with_name(f"{place.name}-verify.log")
    run([*R1QUANT, "verify", str(out), *wanted, "--record", str(found)], log, variables)
    record = json.loads(found.read_text("utf-8"))
    kept = {key: record[key] for key in ("perplexity", "top1", "top1_ci95", "tokens", "dtype")}
    shown = {key: record["text"][key] for key in ("sha256", "windows", "seq_len")}
    return kept | {"kl": {key: record["kl"][key] for key in KL}, "text": shown}


def bits_per_weight(out: Path, model: Path) -> float:
    """Of the quantized linears as they are stored: codes, scales, zero points, group maps.

    Quantized are those whose float weight in `model` is none in `out`.
    """
    stored = open_model(out).tensors
    weights = {
        name.removesuffix(".weight"): info
        for name, info in open_model(model).tensors.items()
        if name.endswith(".weight") and (name not in stored or stored[name].dtype not in FLOATS)
    }
    nbytes = sum(info.nbytes for name, info in stored.items() if name.rpartition(".")[0] in weights)
    return 8 * nbytes / _count(weights.values())


def bits_of(nbytes: int, model: Path) -> float:
    """As `bits_per_weight`, where all linears of the decoder layers take so many bytes."""
    tensors = open_model(model).tensors.items()
    return 8 * nbytes / _count(info for name, info in tensors if ".layers." in name and len(info.shape) == 2)


def _count(tensors: Iterable[TensorInfo]) -> int:
    return sum(math.prod(info.shape) for info in tensors)

"""What goes into a quantization: the hashes and options that its record states and that decide its bytes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from r1quant.checkpoint.safetensors import Checkpoint
from r1quant.core.json import JsonObject
from r1quant.jobs.quantize.calibration import CalibrationRun
from r1quant.planning.budget import Allocation
from r1quant.planning.plan import Plan
from r1quant.progress import Progress
from r1quant.records.quantization import ChosenBits, Compute, Quantization
from r1quant.records.writing import as_json
from r1quant.storage import atomic, provenance
from r1quant.storage.cache import Fingerprint
from r1quant.storage.rundir import RunDir

HASHES = "weights.json"  # in the run directory: hashes of the weight files, with what changes when a file does
KEYS = (
    "model", "source", "architecture", "weights", "config", "tokenizer", "recipe", "compute", "allocation",
    "calibration",
)  # fmt: skip
MAY_CHANGE = ("environment.", "model", "source")  # names, or the beginnings of names, of entries of a fingerprint


def origin_of(
    plan: Plan, calibration: CalibrationRun | None, progress: Progress, known: Mapping[str, str] | None = None
) -> Quantization:
    """The record of a run as far as it is known before: inputs and options.

    known  the hashes of the weight files if they are known; else all weights are read, and checked for NaN and Inf

    Raises NumericError if a weight is not finite, CheckpointError if it cannot be read.
    """
    checkpoint = plan.checkpoint
    if not known:
        progress.begin("checking weights", sum(info.nbytes for info in checkpoint.tensors.values()))
    chosen = plan.allocation
    return Quantization(
        model=checkpoint.name,
        source=_seen_from(plan.out, checkpoint),
        architecture=plan.arch.model_type,
        weights=dict(known or checkpoint.survey(progress.advance)),
        config=provenance.sha256(checkpoint.config_text.encode()),
        tokenizer=provenance.sha256_of_files(checkpoint.side_files),
        recipe=plan.recipe.as_dict() | {name: getattr(plan.recipe, name) for name in ("allowed_bits", "allowed_types")},
        compute=None if calibration is None else Compute(calibration.device, calibration.dtype),
        allocation=None if chosen is None else _chosen(chosen, plan.arguments),
        calibration=None if calibration is None else calibration.text_record,
    )


def _chosen(chosen: Allocation, arguments: tuple[str, ...]) -> ChosenBits:
    return ChosenBits(chosen.bits, chosen.source, chosen.loss, chosen.gap, chosen.types or None, arguments or None)


def environment() -> Mapping[str, str]:
    """Versions and threads of this start, before anything is computed."""
    import torch  # noqa: F401  (its version and thread count are part of the environment)

    return provenance.environment()


def stated(origin: Quantization) -> JsonObject:
    """The entries of its JSON that are known before a run."""
    content = as_json(origin)
    return {key: content[key] for key in KEYS}


def fingerprint_of(origin: Quantization, environment: Mapping[str, str]) -> Fingerprint:
    """All that decides the bytes of the result."""
    flat = {f"environment.{name}": value for name, value in environment.items()}
    for key, value in stated(origin).items():
        entries = value if isinstance(value, dict) else {"": value}
        flat |= {f"{key}.{name}".rstrip("."): str(entry) for name, entry in entries.items()}
    return flat


def may_change(name: str) -> bool:
    """Whether an entry of a fingerprint may change while a run is interrupted, if the user says so: it changes at most
    the last bits of what is computed from then on. Weights, recipe and calibration tokens never may."""
    return name.startswith(MAY_CHANGE[:1]) or name in MAY_CHANGE[1:]


def differences(origin: Quantization, record: JsonObject) -> list[str]:
    """The entries in which a finished result differs from what would be written."""
    entries = json.loads(json.dumps(stated(origin)))
    return [key for key in entries if record.get(key) != entries[key]]


def known_hashes(run: RunDir, plan: Plan) -> Mapping[str, str]:
    """The hashes from an earlier start, if no weight file has been touched since; else none."""
    try:
        stamps, origin = json.loads((run.folder / HASHES).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    hashes: Mapping[str, str] = origin["weights"] if stamps == _stamps(plan) else {}
    return hashes


def keep_hashes(run: RunDir, plan: Plan, origin: Quantization) -> None:
    atomic.write_bytes(run.folder / HASHES, json.dumps([_stamps(plan), stated(origin)]).encode())


def _seen_from(out: Path, checkpoint: Checkpoint) -> str:
    """How the output names its source: a Hub id or embedded name as it is, a local path as seen from the output."""
    local = Path(checkpoint.source)
    return os.path.relpath(local.resolve(), out.resolve()) if local.exists() else checkpoint.source


def _stamps(plan: Plan) -> list[list[str | int]]:
    """What changes when a weight file does, even if its time of modification is set back."""
    stats = [(path, path.stat()) for path in plan.checkpoint.files]
    return [[path.name, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns] for path, s in stats]

"""quantize: a checkpoint in, a servable quantized checkpoint out, one decoder layer in memory at a time.

Everything is written into a run directory beside OUT, a file for each layer; OUT appears by one rename when it is
complete. The same command again goes on from the last finished layer and ends in the same bytes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from r1quant.checkpoint.resolve import open_model
from r1quant.checkpoint.safetensors import Checkpoint
from r1quant.core.formatting import bytes_text
from r1quant.core.json import JsonObject
from r1quant.data import texts
from r1quant.errors import OutOfSpaceError, ResumeError
from r1quant.jobs.artifacts import config_of
from r1quant.jobs.checkpoint_writer import RECORD, own_record
from r1quant.jobs.quantize import finalize
from r1quant.jobs.quantize.calibration import CalibrationRun, calibration_of
from r1quant.jobs.quantize.origin import (
    differences,
    environment,
    fingerprint_of,
    keep_hashes,
    known_hashes,
    may_change,
    origin_of,
)
from r1quant.jobs.quantize.prepare import disk_errors, prepared
from r1quant.planning import planner
from r1quant.planning.place import default_out, finished_record
from r1quant.planning.plan import Plan
from r1quant.progress import Progress, Silent
from r1quant.recipe import Recipe
from r1quant.records.quantization import Quantization, QuantizeRun, RunPrediction
from r1quant.registry import METHODS
from r1quant.storage import atomic, provenance
from r1quant.storage.cache import cache_folder
from r1quant.storage.rundir import RunDir, folder_for


@dataclass(frozen=True)
class Quantized:
    """What a run did.

    record          the content of OUT/r1quant.json
    seconds         and peak_rss_bytes are of this process alone
    resumed_layers  how many layers an earlier start had finished
    predicted       what the plan said of bytes, memory and seconds
    """

    out: Path
    record: Quantization
    seconds: float
    peak_rss_bytes: int
    resumed_layers: int
    already_complete: bool
    predicted: RunPrediction

    def as_dict(self) -> JsonObject:
        files = [path for path in self.out.iterdir() if path.name != RECORD]
        run = QuantizeRun(
            out=str(self.out),
            record=self.record,
            seconds=self.seconds,
            peak_rss_bytes=self.peak_rss_bytes,
            bits_per_weight=self.record.bits_per_weight,
            linears=self.record.linears,
            resumed_layers=self.resumed_layers,
            already_complete=self.already_complete,
            output_bytes=sum(path.stat().st_size for path in files),
            predicted=self.predicted,
            config=config_of(self.out),
        )
        return run.as_dict()


def make_plan(model: str | Path, recipe: Recipe, out: Path | None = None, devices: int = 1) -> Plan:
    """What `run` will do, and what is wrong with it. Reads headers only.

    out      the folder that the result becomes; if it is left out, one in the current folder, named after the result
    devices  over how many the result is split when it is served

    Raises RecipeError, CheckpointError or CalibrationError if there is nothing to plan for.
    """
    if recipe.reads:
        texts.check(recipe.calib)
    checkpoint = _opened(model, recipe)
    return planner.make(checkpoint, recipe, out or default_out(checkpoint, recipe, Path.cwd()), devices)


def quantize(
    model: str | Path, out: Path | None = None, recipe: Recipe | None = None, progress: Progress | None = None
) -> Quantized:
    """Makes a plan and runs it; see `make_plan` and `run`."""
    return run(make_plan(model, recipe or Recipe(), out), progress)


def run(plan: Plan, progress: Progress | None = None, resume_anyway: bool = False) -> Quantized:
    """Quantizes what a plan says into the folder `plan.out`; a result that is there already is compared with the plan.

    resume_anyway  whether an unfinished run goes on though versions or threads have changed, which its record says then

    Raises RecipeError, CheckpointError, CalibrationError, NumericError, ResumeError or OutOfSpaceError; nothing is
    left at `plan.out` then, and what was finished stays in the run directory for the next start.
    """
    begun, progress = time.monotonic(), progress or Silent()
    plan.require()
    with disk_errors(plan.out.parent, cache_folder()):
        calibration = calibration_of(plan, progress) if plan.recipe.reads else None
        job = _Run(calibration, environment(), progress)
        plan = prepared(plan, calibration, progress)
        written = job.write(plan, resume_anyway) if finished_record(plan.out) is None else None
        record = job.compare(plan) if written is None else written.record
    return Quantized(
        plan.out,
        record,
        time.monotonic() - begun,
        provenance.peak_rss_bytes(),
        plan.steps if written is None else written.resumed_layers,
        written is None,
        RunPrediction(**asdict(plan.estimate)),
    )


@dataclass(frozen=True)
class _Written:
    """The record of a result that this process has written, and how many layers it found done."""

    record: Quantization
    resumed_layers: int


@dataclass(frozen=True, eq=False)
class _Run:
    """One start. calibration: None if the recipe reads no text; environment: versions and threads as it began."""

    calibration: CalibrationRun | None
    environment: Mapping[str, str]
    progress: Progress

    def write(self, plan: Plan, resume_anyway: bool) -> _Written | None:
        """Writes what is missing, and puts the result into its place. None if another process has done so meanwhile."""
        with RunDir(folder_for(plan.out)) as folder:
            if finished_record(plan.out) is not None:
                return None
            _check_space(plan, folder)
            origin = origin_of(plan, self.calibration, self.progress, known_hashes(folder, plan))
            keep_hashes(folder, plan, origin)
            folder.claim(fingerprint_of(origin, self.environment), may_change, resume_anyway)
            done = folder.done(plan.steps)
            if done < plan.steps:
                self._quantize_layers(plan, folder)
            record = finalize.build(folder, plan, origin, self.environment)
            finished_record(plan.out)  # refuses what somebody has put there meanwhile
            atomic.rename_folder(folder.output, plan.out)
            folder.remove()
            return _Written(record, done)

    def compare(self, plan: Plan) -> Quantization:
        """The record of a result that is there already. A run directory that a crash has left beside it goes.

        Raises ResumeError if the result is not what the plan would write.
        """
        origin = origin_of(plan, self.calibration, self.progress)
        if changed := differences(origin, finished_record(plan.out) or {}):
            raise ResumeError(
                f"{plan.out} holds a result with a different {', '.join(changed)}",
                "choose another --out, or delete it first",
            )
        folder = folder_for(plan.out)
        if folder.exists():
            with suppress(ResumeError), RunDir(folder) as run_dir:
                run_dir.claim(fingerprint_of(origin, self.environment))
                run_dir.remove()
        record = own_record(plan.out)
        return record if isinstance(record, Quantization) else origin

    def _quantize_layers(self, plan: Plan, folder: RunDir) -> None:
        if METHODS[plan.recipe.method].calibrated and self.calibration is not None:
            from r1quant.jobs.quantize import calibrated

            calibrated.quantize_layers(plan, self.calibration, folder, self.progress)
        else:
            from r1quant.jobs.quantize import uncalibrated

            uncalibrated.quantize_layers(plan, folder, self.progress)


def _check_space(plan: Plan, folder: RunDir) -> None:
    """The disk may have filled since the plan was made: by the passes over the text, or by another program."""
    needed = plan.estimate.output_bytes + plan.estimate.run_bytes - folder.size
    stat = os.statvfs(folder.folder)
    if needed > stat.f_bavail * stat.f_frsize:
        raise OutOfSpaceError(
            f"not enough disk space in {plan.out.parent}: {bytes_text(needed)} needed",
            "free some space, or choose another --out",
        )


def _opened(model: str | Path, recipe: Recipe) -> Checkpoint:
    """The model in the basis that the recipe rotates into."""
    checkpoint = open_model(model)
    if recipe.rotate is None:
        return checkpoint
    from r1quant.engine.transforms.rotate import rotated

    return rotated(checkpoint, residual=recipe.rotate != "r2", heads=recipe.rotate != "r1", seed=recipe.seed)

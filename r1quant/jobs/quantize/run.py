"""quantize: a checkpoint in, a servable quantized checkpoint out, one decoder layer in memory at a time.

Everything is written into a run directory beside OUT, one part a layer; OUT appears by one rename when it is
complete. The same command again goes on from the last finished layer and ends in the same bytes.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from r1quant.checkpoint.artifact import Artifact
from r1quant.checkpoint.resolve import is_embedded, open_model
from r1quant.checkpoint.safetensors import Checkpoint
from r1quant.checkpoint.tokenizer import Tokenizer
from r1quant.core.formatting import bytes_text
from r1quant.core.json import JsonObject
from r1quant.data import texts, windows
from r1quant.errors import OutOfSpaceError, RecipeError, ResumeError
from r1quant.formats import table
from r1quant.jobs.checkpoint_writer import RECORD, own_record
from r1quant.jobs.quantize import finalize
from r1quant.jobs.quantize.fingerprint import fingerprint, precision
from r1quant.planning import planner
from r1quant.planning.budget import Predictions
from r1quant.planning.planner import Plan
from r1quant.progress import Progress, Silent
from r1quant.recipe import Recipe
from r1quant.registry import METHODS
from r1quant.storage import atomic, provenance
from r1quant.storage.cache import cache_folder
from r1quant.storage.rundir import RunDir, folder_for

SCHEMA = "r1quant.quantize/1"


@dataclass(frozen=True)
class Quantized:
    """What quantize did. record is the content of OUT/r1quant.json; seconds and memory are of this process alone.

    predicted: what the plan said of bytes, memory and seconds.
    """

    out: Path
    record: Mapping[str, Any]
    seconds: float
    peak_rss_bytes: int
    resumed_layers: int
    already_complete: bool
    predicted: Mapping[str, float]

    def as_dict(self) -> dict[str, Any]:
        files = [path for path in self.out.iterdir() if path.name != RECORD]
        return {
            "schema": SCHEMA,
            "out": str(self.out),
            "seconds": self.seconds,
            "peak_rss_bytes": self.peak_rss_bytes,
            "bits_per_weight": self.record["bits_per_weight"],
            "linears": self.record["linears"],
            "resumed_layers": self.resumed_layers,
            "already_complete": self.already_complete,
            "output_bytes": sum(path.stat().st_size for path in files),
            "predicted": dict(self.predicted),
            "config": json.loads((self.out / "config.json").read_text("utf-8")),
            "record": dict(self.record),
        }


def default_out(checkpoint: Checkpoint, recipe: Recipe, folder: Path) -> Path:
    """Where the result goes when nobody says: named after what it is."""
    group = "" if recipe.group_size == -1 else f"g{recipe.group_size}"
    kind = "" if recipe.symmetric else "-asym"
    method = "" if recipe.method == "gptq" else f"-{recipe.method}"
    stem = checkpoint.name.removesuffix(".gguf")
    return folder / f"{stem}-{recipe.format}-{_width(recipe)}{group}{kind}{method}"


def _width(recipe: Recipe) -> str:
    """The part of a name that says how many bits."""
    if recipe.target_bpw is not None:
        return f"{recipe.target_bpw:g}bpw"
    if recipe.target_size is not None:
        return f"{recipe.target_size / 1e9:.4g}GB"
    if recipe.fit_gpu is not None:
        return f"{''.join(c for c in recipe.fit_gpu.lower() if c.isalnum())}-{recipe.context}"
    return f"w{recipe.bits}"


def make_plan(model: str | Path, recipe: Recipe, out: Path | None = None, devices: int = 1) -> Plan:
    """What quantize would do, and what is wrong with it. Reads headers only."""
    if recipe.reads:
        texts.check(recipe.calib)
    checkpoint = _opened(model, recipe)
    return planner.make(checkpoint, recipe, out or default_out(checkpoint, recipe, Path.cwd()), devices)


def decided(made: Plan, progress: Progress) -> Plan:
    """A plan with the bits of its budget chosen, after a sensitivity pass where none was made yet.

    Raises whatever would stop the run, and RecipeError where there is no budget.
    """
    made.require()
    if made.budget is None:
        raise RecipeError("there are no bits to choose", "give a budget, such as --target-bpw 4.5")
    with _disk_errors(cache_folder()):
        text, compute = _calibration(made, progress), precision(made.recipe.device, made.recipe.dtype)
        seen = made if made.recipe.factors is None else _transformed(made, text, compute, progress)
        return planner.allocated(made, _predictions(seen, text, compute, progress))


def _opened(model: str | Path, recipe: Recipe) -> Checkpoint:
    """In the basis that the recipe asks for."""
    checkpoint = open_model(model)
    if recipe.rotate is None:
        return checkpoint
    from r1quant.engine.transforms.rotate import rotated

    return rotated(checkpoint, residual=recipe.rotate != "r2", heads=recipe.rotate != "r1", seed=recipe.seed)


def quantize(
    model: str | Path,
    out: Path | None = None,
    recipe: Recipe | None = None,
    progress: Progress | None = None,
    predictions: Predictions | None = None,
) -> Quantized:
    """Quantizes a model into the folder `out`. predictions decide the bits where the recipe has a budget.

    Raises RecipeError, CheckpointError, CalibrationError, NumericError, ResumeError or OutOfSpaceError; nothing is
    left at `out` then, and what was finished stays in the run directory for the next start.
    """
    begun, recipe, progress = time.monotonic(), recipe or Recipe(), progress or Silent()
    checkpoint = _opened(model, recipe)
    out = (out or default_out(checkpoint, recipe, Path.cwd())).absolute()
    made = planner.make(checkpoint, recipe, None if out.exists() or folder_for(out).exists() else out)
    made.require()
    finished = _finished_record(out)
    with _disk_errors(out.parent, cache_folder()):
        reads = recipe.calibrated or (not made.decided and predictions is None)
        text = _calibration(made, progress) if reads else None
        compute = precision(recipe.device, recipe.dtype) if reads else None
        if finished is None and recipe.factors is not None:
            made = _transformed(made, text, compute, progress)
        if not made.decided:
            made = planner.allocated(made, predictions or _predictions(made, text, compute, progress))
            progress.note(f"chosen: {made.allocation}")
        job = _Job(made, text, compute, out, progress)
        if finished is None:
            with RunDir(folder_for(out)) as run:
                finished = _finished_record(out)  # by another process, while this one got ready
                if finished is None:
                    resumed = job.run(run)
                    record = finalize.build(run, made, job.provenance)
                    _finished_record(out)  # refuses what somebody has put there meanwhile
                    atomic.rename_folder(run.output, out)
                    run.remove()
                    seconds, peak = time.monotonic() - begun, provenance.peak_rss_bytes()
                    return Quantized(out, record, seconds, peak, resumed, False, asdict(made.estimate))
        job.compare(finished)
        job.forget_run()
    seconds, peak = time.monotonic() - begun, provenance.peak_rss_bytes()
    return Quantized(out, finished, seconds, peak, made.layers, True, asdict(made.estimate))


def _predictions(
    made: Plan, text: windows.Calibration | None, compute: Mapping[str, str] | None, progress: Progress
) -> Predictions:
    """What each linear would lose at each number of bits that the budget lets choose."""
    from r1quant.jobs.quantize.loss_prediction import predicted

    assert text is not None and compute is not None and made.budget is not None
    seen = _seen(made, text, compute, progress)
    return predicted(made, text.tokens, seen, made.budget.choices, progress)


def _transformed(
    made: Plan, text: windows.Calibration | None, compute: Mapping[str, str] | None, progress: Progress
) -> Plan:
    """The plan with the factors of input channels folded into its checkpoint."""
    from r1quant.jobs.quantize.factors import transformed

    assert text is not None and compute is not None
    seen = _seen(made, text, compute, progress)
    return replace(made, checkpoint=transformed(made, text.tokens, seen, progress))


def _seen(made: Plan, text: windows.Calibration, compute: Mapping[str, str], progress: Progress) -> dict[str, str]:
    """All that decides what the float model does with the text, in the basis that the plan's recipe asks for."""
    recipe = made.recipe
    basis = {} if recipe.rotate is None else {"rotate": recipe.rotate, "seed": str(recipe.seed)}
    if recipe.factors is not None:
        basis |= {"factors": recipe.factors, "smooth": str(recipe.smooth), "grid": str(recipe.grid)}
    return fingerprint(table.artifact(made.checkpoint), text, compute, progress, basis)


def _finished_record(out: Path) -> JsonObject | None:
    """The record of an output that is there already; None where OUT is free."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    record = own_record(out)
    if not record:
        raise ResumeError(f"{out} exists and is not empty", "choose another --out, or delete it first")
    return record


def _calibration(made: Plan, progress: Progress) -> windows.Calibration:
    text = _given(made, progress)
    if not made.recipe.continuations:
        return text
    from r1quant.jobs.generate.selftext import continued

    return continued(made.checkpoint, made.recipe, text, progress)


def _given(made: Plan, progress: Progress) -> windows.Calibration:
    recipe = made.recipe
    if recipe.calib == texts.SELF:
        from r1quant.jobs.generate.selftext import own_text

        return own_text(made.checkpoint, recipe, progress)
    tokenizer = Tokenizer.of(made.checkpoint)
    vocabulary = int(made.checkpoint.config["vocab_size"])
    text = recipe.calib or default_text(made.checkpoint)
    return windows.load(text, tokenizer, recipe.samples, recipe.seq_len, recipe.seed, vocabulary=vocabulary)


def default_text(model: Checkpoint | Artifact) -> str | None:
    """The text to calibrate and measure with where none is named: the embedded model knows only its own problems."""
    return texts.CHAINS if is_embedded(model.source, model.folder) else None


@contextmanager
def _disk_errors(*folders: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        full = " or of ".join(map(str, folders))
        raise OutOfSpaceError(
            f"the disk of {full} is full", "free some space and run the same command: finished layers are kept"
        ) from error


class _Job:
    """One quantization: its fingerprint, and the loop over layers."""

    def __init__(
        self,
        made: Plan,
        text: windows.Calibration | None,
        compute: Mapping[str, str] | None,
        out: Path,
        progress: Progress,
    ) -> None:
        self.plan, self.text, self.compute, self.out, self.progress = made, text, compute, out, progress
        self.provenance: dict[str, Any] = {}

    def compare(self, record: Mapping[str, Any]) -> None:
        """Raises ResumeError where an output that is there already is not what this run would write."""
        self._survey({})
        mine = json.loads(json.dumps(self.provenance))
        changed = [key for key in mine if record.get(key) != mine[key]]
        if changed:
            raise ResumeError(
                f"{self.out} holds a result with a different {', '.join(changed)}",
                "choose another --out, or delete it first",
            )

    def forget_run(self) -> None:
        """Deletes the run directory of an output that is complete, where a crash came between the two."""
        folder = folder_for(self.out)
        if folder.exists():
            with suppress(ResumeError), RunDir(folder) as run:
                run.claim(self._fingerprint())
                run.remove()

    def run(self, run: RunDir) -> int:
        """Quantizes what is not done yet. Returns how many layers were found done."""
        self._check_space(run)
        self._survey(self._known_hashes(run))
        atomic.write_bytes(run.folder / "weights.json", json.dumps([_stamps(self.plan), self.provenance]).encode())
        run.claim(self._fingerprint())
        done = run.done(self.plan.layers)
        if done == self.plan.layers:
            return done
        if METHODS[self.plan.recipe.method].calibrated:
            from r1quant.jobs.quantize.calibrated import quantize_layers

            assert self.text is not None and self.compute is not None
            seen = _seen(self.plan, self.text, self.compute, self.progress)
            quantize_layers(self.plan, self.text.tokens, seen, run, done, self.progress)
        else:
            from r1quant.jobs.quantize.rtn_loop import quantize_layers as round_layers

            round_layers(self.plan, run, done, self.progress)
        return done

    def _check_space(self, run: RunDir) -> None:
        needed = self.plan.estimate.output_bytes + self.plan.estimate.run_bytes - run.size
        stat = os.statvfs(run.folder)
        if needed > stat.f_bavail * stat.f_frsize:
            raise OutOfSpaceError(
                f"not enough disk space in {self.out.parent}: {bytes_text(needed)} needed",
                "free some space, or choose another --out",
            )

    def _known_hashes(self, run: RunDir) -> Mapping[str, str]:
        """Hashes from an earlier start, where the weight files have not been touched since."""
        try:
            stamps, known = json.loads((run.folder / "weights.json").read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return known["weights"] if stamps == _stamps(self.plan) else {}

    def _survey(self, known: Mapping[str, str]) -> None:
        checkpoint, recipe = self.plan.checkpoint, self.plan.recipe
        total = sum(info.nbytes for info in checkpoint.tensors.values())
        if not known:
            self.progress.begin("checking weights", total)
        self.provenance = {
            "model": checkpoint.name,
            "source": _located(checkpoint, self.out),
            "architecture": self.plan.arch.model_type,
            "weights": dict(known or checkpoint.survey(self.progress.advance)),
            "config": provenance.sha256(checkpoint.config_text.encode()),
            "tokenizer": provenance.sha256_of_files(checkpoint.side_files),
            "recipe": recipe.as_dict(),
            "compute": self.compute,
            "allocation": None if self.plan.allocation is None else self.plan.allocation.as_dict(),
            "calibration": None
            if self.text is None
            else {
                "source": self.text.source,
                "sha256": self.text.sha256,
                "samples": len(self.text.tokens),
                "requested_samples": self.text.requested,
                "seq_len": recipe.seq_len,
                "documents": self.text.documents,
            },
        }

    def _fingerprint(self) -> dict[str, str]:
        """Everything that decides the bytes of the result, flat, so that a difference can be named."""
        import torch  # noqa: F401  (its version and thread count are part of the environment)

        flat = {f"environment.{key}": value for key, value in provenance.environment().items()}
        for key, value in self.provenance.items():
            entries = value if isinstance(value, dict) else {"": value}
            flat |= {f"{key}.{name}".rstrip("."): str(entry) for name, entry in entries.items()}
        return flat


def _located(checkpoint: Checkpoint, out: Path) -> str:
    """How the output names its source: a Hub id or embedded name as it is, a local path as seen from the output."""
    local = Path(checkpoint.source)
    return os.path.relpath(local.resolve(), out.resolve()) if local.exists() else checkpoint.source


def _stamps(made: Plan) -> list[list[Any]]:
    """What changes when a weight file does, even where its time of modification is set back."""
    stats = [(path, path.stat()) for path in made.checkpoint.files]
    return [[path.name, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns] for path, s in stats]

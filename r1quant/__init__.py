"""r1quant: quantize reasoning models to int4/int8 and prove that the result is as good.

    import r1quant
    r1quant.quantize("path/to/model", bits=4)
    r1quant.verify()

The command line is a second face of these functions. They raise the errors of r1quant.errors and nothing else on
purpose. Importing this module loads nothing that is slow; a function loads what it needs.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

if TYPE_CHECKING:
    from r1quant.jobs.bench.options import BenchOptions
    from r1quant.jobs.check.run import Checked
    from r1quant.jobs.export.run import Exported
    from r1quant.jobs.fit.options import FitOptions
    from r1quant.jobs.fit.run import Fit
    from r1quant.jobs.generate.options import GenerateOptions
    from r1quant.jobs.generate.run import Generated
    from r1quant.jobs.publish.options import PublishOptions
    from r1quant.jobs.publish.pull_check import PullChecked
    from r1quant.jobs.publish.run import Published
    from r1quant.jobs.quantize.run import Quantized
    from r1quant.jobs.report.run import Reported
    from r1quant.jobs.setup import Setup
    from r1quant.jobs.verify.options import VerifyArguments, VerifyOptions
    from r1quant.planning.plan import Plan
    from r1quant.planning.targets import ExportArguments, ExportOptions
    from r1quant.progress import Progress
    from r1quant.recipe import Recipe, RecipeArguments
    from r1quant.records.bench import Bench
    from r1quant.records.verification import Verification

__all__ = [
    "BenchOptions", "ExportOptions", "FitOptions", "GenerateOptions", "PublishOptions", "Recipe", "Setup",
    "VerifyOptions", "bench", "calib_generate", "check", "doctor", "export", "fit", "inspect", "plan", "publish",
    "pull_check", "quantize", "report", "run", "verify",
]  # fmt: skip
_OPTIONS: Mapping[str, str] = {
    "BenchOptions": "jobs.bench.options",
    "ExportOptions": "planning.targets",
    "FitOptions": "jobs.fit.options",
    "GenerateOptions": "jobs.generate.options",
    "PublishOptions": "jobs.publish.options",
    "Recipe": "recipe",
    "Setup": "jobs.setup",
    "VerifyOptions": "jobs.verify.options",
}


def __getattr__(name: str) -> object:
    """The classes of options, each loaded when it is first asked for."""
    if name not in _OPTIONS:
        raise AttributeError(f"module 'r1quant' has no attribute {name!r}")
    return getattr(importlib.import_module(f"r1quant.{_OPTIONS[name]}"), name)


def inspect(model: str | Path = "tiny-r1") -> Mapping[str, Any]:
    """What a checkpoint is, from its headers alone: architecture, parameters, linears, dtypes, quantization."""
    from r1quant.jobs.inspect import inspect as job

    return job(model)


def plan(
    model: str | Path = "tiny-r1",
    out: str | Path | None = None,
    preset: str | None = None,
    **options: Unpack[RecipeArguments],
) -> Plan:
    """What quantize would do with the same arguments, and what would stop it. Reads headers only."""
    from r1quant.jobs.quantize.run import make_plan
    from r1quant.recipe import from_values

    return make_plan(model, from_values(options, preset), None if out is None else Path(out))


def run(plan: Plan, progress: Progress | None = None, resume_anyway: bool = False) -> Quantized:
    """Quantizes what a plan says, into the folder `plan.out`, which appears only when it is complete.

    resume_anyway  whether an unfinished run goes on though versions or threads have changed, which its record says then
    """
    from r1quant.jobs.quantize.run import run as job

    return job(plan, progress, resume_anyway)


def quantize(
    model: str | Path = "tiny-r1",
    out: str | Path | None = None,
    progress: Progress | None = None,
    preset: str | None = None,
    **options: Unpack[RecipeArguments],
) -> Quantized:
    """Quantizes a model into the folder `out`, which appears only when it is complete.

    options  fields of Recipe, over the preset: fast, balanced or best; balanced, if neither it nor a method is named
    """
    return run(plan(model, out, preset, **options), progress)


def calib_generate(
    model: str | Path = "tiny-r1",
    out: str | Path | None = None,
    options: GenerateOptions | None = None,
    progress: Progress | None = None,
) -> Generated:
    """Has a model write text to calibrate it on, into the JSONL file `out`."""
    from r1quant.jobs.generate.run import generate as job

    return job(model, out, options, progress)


def export(
    source: str | Path,
    to: str | Sequence[str],
    out: str | Path | None = None,
    progress: Progress | None = None,
    **options: Unpack[ExportArguments],
) -> Exported:
    """Writes a model in one or several other formats, bit for bit; what a format cannot hold exactly is refused.

    options  fields of ExportOptions
    """
    from r1quant.jobs.export.run import export as job
    from r1quant.planning.targets import ExportOptions

    formats = [to] if isinstance(to, str) else list(to)
    return job(source, formats, None if out is None else Path(out), ExportOptions(**options), progress)


def check(a: str | Path, b: str | Path, progress: Progress | None = None) -> Checked:
    """Whether two artifacts, of any two formats, hold the same weights."""
    from r1quant.jobs.check.run import check as job

    return job(a, b, progress)


def verify(
    out: str | Path | None = None,
    baseline: str | Path | None = None,
    text: str | None = None,
    progress: Progress | None = None,
    **options: Unpack[VerifyArguments],
) -> Verification:
    """How far a quantized model is from the model it was made from: on text, on problems, on tasks.

    out       the quantized model; None is the one last written into the current folder
    baseline  None is what the record of `out` says
    options   fields of VerifyOptions, beside text
    """
    from r1quant.jobs.verify.options import VerifyOptions
    from r1quant.jobs.verify.run import verify as job

    return job(out, baseline, VerifyOptions(text=text, **options), progress)


def bench(
    out: str | Path | None = None,
    baseline: str | Path | None = None,
    options: BenchOptions | None = None,
    setup: Setup | None = None,
    progress: Progress | None = None,
) -> Bench:
    """How fast a quantized model and its baseline run on this machine, and how much memory they take.

    out       None is the quantized model last written into the current folder
    baseline  None is what the record of `out` says; "none" measures `out` alone
    setup     how `out` is run
    """
    from r1quant.jobs.bench.run import bench as job

    return job(out, baseline, setup, options, progress)


def fit(model: str | Path = "tiny-r1", options: FitOptions | None = None) -> Fit:
    """What a model needs of hardware in every format, and how fast it would be there. Reads headers only."""
    from r1quant.jobs.fit.run import fit as job

    return job(model, options)


def report(
    records: Sequence[str | Path] = (), out: str | Path = "report", png: bool = False, check: bool = False
) -> Reported:
    """Makes a report of records, in the folder `out`: HTML, Markdown and JSON.

    records  files, or folders that hold them; none at all is the current folder
    png      whether the main chart is drawn as PNG too
    check    whether nothing is written, and the report that is there is compared with what would be
    """
    from r1quant.jobs.report.run import report as job

    return job(records, out, png, check)


def publish(options: PublishOptions, out: str | Path | None = None, progress: Progress | None = None) -> Published:
    """Gives a quantized model away with its measurements, licence, checksums and provenance: in a folder, or on the
    Hub. `out`: None is the one last written into the current folder."""
    from r1quant.jobs.publish.run import publish as job

    return job(out, options, progress)


def pull_check(folder: str | Path, progress: Progress | None = None) -> PullChecked:
    """Whether each file of a downloaded model is the one that was published."""
    from r1quant.jobs.publish.pull_check import pull_check as job

    return job(folder, progress)


def doctor(model: str | Path | None = None) -> Mapping[str, Any]:
    """What this machine has of all that r1quant can use and, with a model, what is peculiar about that model."""
    from r1quant.jobs.doctor import doctor as job

    return job(model)

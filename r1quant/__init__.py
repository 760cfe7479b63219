"""r1quant: quantize reasoning models to int4/int8 and prove that the result is as good.

    import r1quant
    r1quant.quantize("path/to/model", bits=4)
    r1quant.verify()

The command line is a second face of these functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from r1quant.jobs.check.run import Checked
    from r1quant.jobs.export.run import Exported
    from r1quant.jobs.generate.run import Generated
    from r1quant.jobs.quantize.run import Quantized
    from r1quant.planning.plan import Plan
    from r1quant.progress import Progress
    from r1quant.records.verification import Verification

__all__ = ["calib_generate", "check", "export", "inspect", "plan", "quantize", "run", "verify"]


def inspect(model: str | Path = "tiny-r1") -> dict[str, Any]:
    """What a checkpoint is, from its headers: architecture, parameters, linears, dtypes, quantization."""
    from r1quant.jobs.inspect import inspect as job

    return job(model)


def plan(
    model: str | Path = "tiny-r1", out: str | Path | None = None, preset: str | None = None, **options: Any
) -> Plan:
    """What quantize would do; presets and options as there. Reads headers only."""
    from r1quant.jobs.quantize.run import make_plan
    from r1quant.recipe import from_values

    return make_plan(model, from_values(options, preset), None if out is None else Path(out))


def run(plan: Plan, progress: Progress | None = None, resume_anyway: bool = False) -> Quantized:
    """Quantizes what a plan says, into the folder `plan.out`, which appears only when it is complete.

    resume_anyway  whether an unfinished run goes on though versions or threads have changed, which its record says then

    Raises the errors of r1quant.errors.
    """
    from r1quant.jobs.quantize.run import run as job

    return job(plan, progress, resume_anyway)


def quantize(
    model: str | Path = "tiny-r1",
    out: str | Path | None = None,
    progress: Progress | None = None,
    preset: str | None = None,
    **options: Any,
) -> Quantized:
    """Quantizes a model into the folder `out`; options are the fields of r1quant.recipe.Recipe, over the preset fast,
    balanced or best: balanced, where neither it nor a method is named.

    Raises the errors of r1quant.errors; `out` appears only when it is complete.
    """
    return run(plan(model, out, preset, **options), progress)


def calib_generate(
    model: str | Path = "tiny-r1", out: str | Path | None = None, progress: Progress | None = None, **options: Any
) -> Generated:
    """Has a model write text to calibrate it on; options are the fields of r1quant.jobs.selftext.Options
    and of r1quant.jobs.runtimes.Setup."""
    from r1quant.jobs.generate.run import generate as job
    from r1quant.jobs.generate.selftext import GenerateOptions

    return job(model, out, GenerateOptions.of(options), progress)


def export(
    source: str | Path,
    to: str | Sequence[str],
    out: str | Path | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Exported:
    """Writes a model in other formats, bit for bit; options are the fields of r1quant.targets.ExportOptions."""
    from r1quant.jobs.export.run import export as job
    from r1quant.planning.targets import ExportOptions

    formats = [to] if isinstance(to, str) else list(to)
    return job(source, formats, None if out is None else Path(out), ExportOptions(**options), progress)


def check(a: str | Path, b: str | Path, progress: Progress | None = None) -> Checked:
    """Whether two artifacts, of any two formats, hold the same weights; see r1quant.jobs.check."""
    from r1quant.jobs.check.run import check as job

    return job(a, b, progress)


def verify(
    out: str | Path | None = None,
    baseline: str | Path | None = None,
    text: str | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Verification:
    """How far a quantized model is from its baseline; options are the fields of
    r1quant.jobs.verify.options.VerifyOptions."""
    from r1quant.jobs.verify.options import VerifyOptions
    from r1quant.jobs.verify.run import verify as job

    return job(out, baseline, VerifyOptions(text=text, **options), progress)

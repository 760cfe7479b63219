"""The options that make a recipe, shared by plan and quantize."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from r1quant.recipe import TARGETS, Recipe, from_values, read_settings
from r1quant.registry import DEFAULT_PRESET, FORMATS, METHODS, PRESETS

F = TypeVar("F", bound=Callable[..., Any])

WRITTEN = [name for name, format in FORMATS.items() if format.quantized]  # the others are for export
OPTIONS = (
    click.argument("model", required=False),
    click.option(
        "-o", "--out", type=click.Path(path_type=Path), help="Output folder.  [default: named after the model]"
    ),
    click.option(
        "--preset",
        help=f"How much effort: {', '.join(PRESETS)}.  [default: {DEFAULT_PRESET}, where no method is named]",
    ),
    click.option("--bits", type=str, help="Bits per weight: 2 to 8; GPTQ holds 2, 3, 4 and 8, AWQ 4.  [default: 4]"),
    click.option(
        "--target-bpw", type=float, help="Instead of --bits: stored bits per weight, each linear with those it needs."
    ),
    click.option("--target-size", help="Instead of --bits: of all weight files together, such as 5GB; never above it."),
    click.option("--fit-gpu", help='Instead of --bits: the card that shall hold it, such as "RTX 4060".'),
    click.option("--context", type=int, help="With --fit-gpu: tokens whose 16-bit cache shall fit beside the weights."),
    click.option(
        "--allowed-bits",
        help="With a target: bits to choose from, such as 4,8; 16 leaves a linear in float. Left out, all that the "
        "format holds and a runtime loads.",
    ),
    click.option("--method", help=f"{', '.join(METHODS)}, as it is, instead of a preset."),
    click.option("--group-size", type=int, help="Weights that share a scale: 16, 32, 64, 128, -1.  [default: 128]"),
    click.option(
        "--symmetric/--asymmetric", "symmetric", default=None, help="Fixed or free zero point.  [default: symmetric]"
    ),
    click.option("--scale-dtype", help="portable (exact in fp16 and bf16) or float16.  [default: portable]"),
    click.option(
        "--scale-search/--min-max", "scale_search", default=None, help="How scales are chosen.  [default: scale-search]"
    ),
    click.option(
        "--act-order/--no-act-order",
        "act_order",
        default=None,
        help="Round important columns first; groups stay contiguous.  [default: act-order]",
    ),
    click.option(
        "--guided/--unguided",
        "guided",
        default=None,
        help="Round by what the answer needs, after a sensitivity pass; the preset says so too.  [default: unguided]",
    ),
    click.option(
        "--guided-share",
        type=float,
        help="The part of the calibration windows that the sensitivity pass sees; 0.25 in balanced, but all under a "
        "budget and at least 8,192 tokens.  [default: 1.0]",
    ),
    click.option("--draws", type=int, help="How often the sensitivity pass is made, with other draws.  [default: 1]"),
    click.option(
        "--corrected/--uncorrected",
        "corrected",
        default=None,
        help="Let each layer make up for the errors of those before it; presets say so.  [default: uncorrected]",
    ),
    click.option(
        "--corrected-share",
        type=float,
        help="The part of the calibration windows that this is learnt from; 0.25 in fast, 0.5 in balanced, but all "
        "under a budget and at least 8,192 tokens.  [default: 1.0]",
    ),
    click.option(
        "--awq/--no-awq",
        "awq",
        default=None,
        help="AWQ's factors before rounding; what --method awq is.  [default: no-awq]",
    ),
    click.option("--smooth", type=float, help="SmoothQuant's factors before rounding: its alpha, such as 0.5."),
    click.option(
        "--rotate", help="Rotate first: r1 (residual stream), r2 (heads), both. Unties the head; needs no calibration."
    ),
    click.option(
        "--damping",
        type=float,
        help="Share of the mean diagonal added to the Hessian; 0.05 in presets.  [default: 0.01]",
    ),
    click.option(
        "--calib",
        help="A text or JSONL file, hub:NAME, or self, which the model writes.  [default: the bundled set]",
    ),
    click.option("--samples", type=int, help="Calibration windows.  [default: 128]"),
    click.option("--seq-len", type=int, help="Tokens in a window.  [default: 1024]"),
    click.option("--seed", type=int, help="Seed of the calibration's shuffle.  [default: 0]"),
    click.option(
        "--continued",
        type=float,
        help="Let the model write on from this part of the windows, and calibrate on that too; 1 in best.  "
        "[default: 0.0]",
    ),
    click.option("--format", help=f"Output format: {', '.join(WRITTEN)}.  [default: gptq]"),
    click.option("--device", help="cpu, cuda, or auto.  [default: auto]"),
    click.option("--dtype", help="Precision of the calibration run: float32, bfloat16, auto.  [default: auto]"),
)


def recipe_options(function: F) -> F:
    for option in reversed(OPTIONS):
        function = option(function)
    return function


def build_recipe(preset: str | None, bits: str | None, rest: dict[str, Any]) -> Recipe:
    """Flags over the preset over [quantize] of r1quant.toml. Bits and budgets replace each other."""
    named = PRESETS.get(preset, {}) if preset is not None else {}
    flags = {key: value for key, value in rest.items() if value is not None}
    replaced = set(named)
    if bits is not None or any(name in flags for name in TARGETS):
        replaced |= {"bits", *TARGETS, "context"}
        replaced |= {"allowed_bits"} if bits is not None else set()
    values = {key: value for key, value in read_settings(Path.cwd()).quantize.items() if key not in replaced}
    values |= flags
    if bits is not None:
        values["bits"] = int(bits) if bits.isascii() and bits.isdigit() else bits
    return from_values(values, preset)

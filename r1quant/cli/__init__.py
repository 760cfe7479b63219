"""The command line: a thin face of the Python API. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from r1quant.cli import console
from r1quant.cli.bench import bench
from r1quant.cli.calib import calib
from r1quant.cli.check import check
from r1quant.cli.completion import completion
from r1quant.cli.doctor import doctor
from r1quant.cli.export import export
from r1quant.cli.fit import fit
from r1quant.cli.inspect import inspect
from r1quant.cli.plan import plan
from r1quant.cli.publish import publish
from r1quant.cli.pull_check import pull_check
from r1quant.cli.quantize import quantize
from r1quant.cli.report import report
from r1quant.cli.verify import verify


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="r1quant", prog_name="r1quant")
def cli() -> None:
    """Quantize reasoning models to int4/int8 and prove that the result is as good.

    MODEL is a folder, a .gguf file, or a Hub id. Left out, it is $R1QUANT_MODEL, then `model` in ./r1quant.toml,
    then the embedded tiny-r1. Exit codes: 0 done, 1 a check failed, 2 wrong options, 3 unusable input, 4 a package
    is missing, 130 interrupted.
    """


for command in (
    inspect, plan, quantize, calib, export, check, verify, bench, fit, report, publish, pull_check, doctor,
    completion,
):  # fmt: skip
    cli.add_command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits with its code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(console.run(cli, words))

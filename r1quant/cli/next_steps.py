"""Prints what can be done next with an artifact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from r1quant.publishing.usage import Usage


def show(steps: Sequence[Usage]) -> None:
    """Commands to copy, each under its title: ours first, then those of the runtimes. Code is shown only if no command
    serves the artifact; else the libraries that load it as well are named."""
    servers = [step for step in steps[1:] if not step.is_library]
    libraries = [step for step in steps[1:] if step.is_library]
    for step in (*steps[:1], *(servers or libraries)):
        click.echo(f"next, {step.runtime}:")
        for line in (line for block in step.blocks for line in block.lines):
            if not line.startswith("curl "):
                click.echo(f"  {line}".rstrip())
    if servers and libraries:
        names = " and ".join(step.runtime for step in libraries)
        click.echo(f"also loaded by {names}; --json has the code")

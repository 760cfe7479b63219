"""Writes docs/cli.md from the commands' own --help; `--check` only says whether it is in step."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from r1quant.cli import cli

PAGE = Path(__file__).resolve().parent.parent / "docs" / "cli.md"


def page() -> str:
    """The whole page: the group's help, then each command's."""
    parts = ["# The command line", "", "Written from `--help` by `make docs`.", ""]
    top = click.Context(cli, info_name="r1quant", max_content_width=100, terminal_width=100)
    parts += ["```text", cli.get_help(top), "```", ""]
    parts += commands(cli, top)
    return "\n".join(line.rstrip() for line in "\n".join(parts).splitlines()) + "\n"


def commands(group: click.Group, parent: click.Context) -> list[str]:
    """The help of each command of a group, and of those inside it."""
    parts = []
    for name in sorted(group.commands):
        command = group.commands[name]
        context = click.Context(command, info_name=name, parent=parent, max_content_width=100, terminal_width=100)
        parts += [f"## {context.command_path}", "", "```text", command.get_help(context), "```", ""]
        if isinstance(command, click.Group):
            parts += commands(command, context)
    return parts


@click.command(help=__doc__)
@click.option("--check", is_flag=True)
def main(check: bool) -> None:
    if not check:
        PAGE.write_text(page(), "utf-8")
    elif not PAGE.is_file() or PAGE.read_text("utf-8") != page():
        click.echo("docs/cli.md is not in step with --help; run: make docs", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()

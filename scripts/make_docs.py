"""Writes docs/cli.md from the commands' own --help and docs/api.md from signatures and docstrings; `--check` only says
whether they are in step."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import click

import r1quant
from r1quant.cli import cli
from r1quant.core.options import Option, options_of

DOCS = Path(__file__).resolve().parent.parent / "docs"
CLASSES = [name for name in r1quant.__all__ if inspect.isclass(getattr(r1quant, name))]
FUNCTIONS = [name for name in r1quant.__all__ if name not in CLASSES]


def cli_page() -> str:
    """The group's help, then each command's."""
    top = click.Context(cli, info_name="r1quant", max_content_width=100, terminal_width=100)
    parts = ["# The command line", "", "Written from `--help` by `make docs`.", ""]
    parts += ["```text", cli.get_help(top), "```", "", *commands(cli, top)]
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


def api_page() -> str:
    """Each function with its signature and docstring, then the fields of each class of options."""
    parts = ["# The Python API", "", "Written from signatures and docstrings by `make docs`.", ""]
    parts += ["```text", inspect.getdoc(r1quant) or "", "```", "", "## Functions", ""]
    for name in FUNCTIONS:
        function = getattr(r1quant, name)
        parts += [f"### {name}", "", "```python", signature(name), "```", "", "```text"]
        parts += [inspect.getdoc(function) or "", "```", ""]
    parts += [
        "## Options",
        "",
        "Frozen classes: `r1quant.NAME(field=value, ...)`, each field with a default.",
        "",
    ]
    for name in CLASSES:
        kind = getattr(r1quant, name)
        parts += [f"### {name}", "", inspect.getdoc(kind) or "", "", "| field | default | |", "|---|---|---|"]
        parts += [row(one) for one in options_of(kind)] + [""]
    return "\n".join(line.rstrip() for line in "\n".join(parts).splitlines()) + "\n"


def signature(name: str) -> str:
    """As it is written, one parameter a line; annotations are the texts that the source has."""
    found = inspect.signature(getattr(r1quant, name))
    parameters = "".join(f"\n    {declared(parameter)}," for parameter in found.parameters.values())
    return f"def {name}({parameters}\n) -> {found.return_annotation}"


def declared(parameter: inspect.Parameter) -> str:
    stars = "**" if parameter.kind is inspect.Parameter.VAR_KEYWORD else ""
    default = "" if parameter.default is inspect.Parameter.empty else f" = {parameter.default!r}"
    return f"{stars}{parameter.name}: {parameter.annotation}{default}"


def row(option: Option) -> str:
    shown = option.declaration.shown or f"`{option.default!r}`"
    text = option.declaration.help.replace("|", "\\|")
    return f"| `{option.name}` | {shown} | {text} |"


PAGES = {"cli.md": cli_page, "api.md": api_page}


@click.command(help=__doc__)
@click.option("--check", is_flag=True)
def main(check: bool) -> None:
    stale = []
    for name, page in PAGES.items():
        path = DOCS / name
        if not check:
            path.write_text(page(), "utf-8")
        elif not path.is_file() or path.read_text("utf-8") != page():
            stale.append(f"docs/{name}")
    if stale:
        click.echo(f"{' and '.join(stale)} not in step with the code; run: make docs", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()

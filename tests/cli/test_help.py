"""Every command, option and argument explains itself, and asking for help costs nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import click
import pytest

from r1quant.cli import cli
from tests.conftest import Run

HEAVY = ("torch", "transformers", "numba", "tokenizers", "huggingface_hub", "gguf", "datasets", "jinja2", "safetensors")


def commands(
    command: click.Command = cli, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from commands(inner, (*path, name))


COMMANDS = dict(commands())


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: " ".join(("r1quant", *path)))
def test_help(run: Run, path: tuple[str, ...]) -> None:
    command = COMMANDS[path]
    assert command.help and command.help.split("\n")[0].rstrip().endswith((".", ":")), "a command without help"
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help and parameter.help.strip(), f"{parameter.name} has no help"
        elif isinstance(parameter, click.Argument):
            assert str(parameter.name).upper() in command.help, f"the help does not say what {parameter.name} is"
    for flag in ("--help", "-h"):
        ran = run(*path, flag)
        assert ran.code == 0 and ran.err == "" and ran.out.startswith(f"Usage: {' '.join(('r1quant', *path))} ")
        shown = [o for p in command.params if isinstance(p, click.Option) for o in (*p.opts, *p.secondary_opts)]
        assert all(option in ran.out for option in shown)


@pytest.mark.parametrize("path", [p for p, c in COMMANDS.items() if not isinstance(c, click.Group)])
def test_every_command_has_json_and_debug(path: tuple[str, ...]) -> None:
    assert {"--json", "--debug"} <= {o for p in COMMANDS[path].params for o in p.opts}


def test_the_options_that_other_programs_rely_on() -> None:
    wanted = (
        "-o --out --bits --method --preset --group-size --symmetric --asymmetric --calib --samples --seq-len "
        "--seed --format --device"
    )
    for name in ("plan", "quantize"):
        has = {o for p in cli.commands[name].params for o in (*p.opts, *p.secondary_opts)}
        assert set(wanted.split()) <= has
    assert "--dry-run" in {o for p in cli.commands["quantize"].params for o in p.opts}


def test_version(run: Run) -> None:
    ran = run("--version")
    assert ran.code == 0 and metadata.version("r1quant") in ran.out


def test_defaults_in_the_help_are_those_of_the_recipe() -> None:
    from r1quant.recipe import Recipe

    compared = 0
    for option in cli.commands["quantize"].params:
        stated = re.search(r"\[default: (.+)\]", getattr(option, "help", None) or "")
        if stated and hasattr(Recipe, str(option.name)):
            value, compared = getattr(Recipe(), str(option.name)), compared + 1
            if isinstance(value, bool):
                flags = (option.opts if value else option.secondary_opts)[0]
                assert stated[1] == flags.removeprefix("--")
            elif value is not None:
                assert stated[1] == str(value), option.name
    assert compared > 8


def imported_by(words: list[str], folder: Path) -> set[str]:
    """Which packages are loaded once a command has ended, in a fresh interpreter."""
    code = (
        "import sys\nfrom r1quant.cli import main\n"
        f"try: main({words!r})\nexcept SystemExit as ended: assert ended.code == 0, ended.code\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=folder)
    assert ran.returncode == 0, ran.stderr
    return {name.partition(".")[0] for name in ran.stderr.splitlines()[-1].split()}


@pytest.mark.parametrize(
    "words", [["--help"], ["quantize", "--help"], ["inspect"], ["plan"], ["quantize", "--dry-run"]]
)
def test_what_must_be_quick_imports_nothing_heavy(in_tmp: Path, llama: Path, words: list[str]) -> None:
    if "--help" not in words:
        words = [*words, str(llama), "--json", *(() if words == ["inspect"] else ("--group-size", "32"))]
    loaded = imported_by(words, in_tmp)
    assert "r1quant" in loaded and not loaded & set(HEAVY)

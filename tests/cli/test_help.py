"""Every command, option and argument explains itself, and asking for help costs nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import click
import pytest

from r1quant.cli import cli
from r1quant.cli.options import HEADINGS
from r1quant.core.options import OneOf, options_of
from r1quant.jobs.bench.options import BenchOptions
from r1quant.jobs.fit.options import FitOptions
from r1quant.jobs.generate.options import GenerateOptions
from r1quant.jobs.publish.options import PublishOptions
from r1quant.jobs.setup import Setup
from r1quant.jobs.verify.options import VerifyOptions
from r1quant.planning.targets import ExportOptions
from r1quant.recipe import Recipe
from r1quant.registry import PRESETS
from tests.conftest import Run

DECLARED = [
    ("plan", Recipe), ("quantize", Recipe), ("verify", VerifyOptions), ("export", ExportOptions),
    ("bench", BenchOptions), ("fit", FitOptions), ("publish", PublishOptions), ("calib generate", GenerateOptions),
    ("calib generate", Setup),
]  # fmt: skip
SECTIONS = {
    "quantize": [
        "Bits", "Budget instead of bits", "Rounding", "Transforms before rounding", "Calibration", "Output", "Device",
        "Other options",
    ],
    "bench": ["Loads", "Repeats", "Backends and servers", "Device", "Other options"],
    "calib generate": ["Prompts", "Answers", "Output", "Backends and servers", "Device", "Other options"],
    "export": ["Output", "Floats", "GGUF", "Importance for K-quants of GGUF", "ONNX", "Other options"],
    "fit": ["Hardware", "Texts", "Formats", "Other options"],
    "publish": ["Output", "Evidence", "Safety", "Hub", "Other options"],
    "verify": ["Text", "Problems", "Tasks", "Backends and servers", "Device", "Gates", "Other options"],
}  # fmt: skip
SCRIPT = ("completion",)  # what it prints is for a shell
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
        options = [option for option in command.params if isinstance(option, click.Option)]
        shown = [flag for option in options if not option.hidden for flag in (*option.opts, *option.secondary_opts)]
        assert all(flag in ran.out for flag in shown)


@pytest.mark.parametrize(
    "path", [p for p, c in COMMANDS.items() if not isinstance(c, click.Group) and p != ("completion",)]
)
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


OPTIONS = [
    (" ".join(path), option)
    for path, command in COMMANDS.items()
    for option in command.params
    if isinstance(option, click.Option)
]


@pytest.mark.parametrize(("command", "option"), OPTIONS, ids=[f"{c} {o.opts[-1]}" for c, o in OPTIONS])
def test_no_help_text_states_a_default_by_hand(command: str, option: click.Option) -> None:
    """click shows the default, from the one place where it stands."""
    assert option.help and "[default" not in option.help and option.help.rstrip().endswith(".")
    assert option.help[0].isupper(), "a help is a sentence"


def test_every_heading_is_in_the_order_of_headings() -> None:
    groups = {option.declaration.group for _, kind in DECLARED for option in options_of(kind)}
    assert groups <= set(HEADINGS)


@pytest.mark.parametrize(
    ("command", "kind"), DECLARED, ids=[f"{command} {kind.__name__}" for command, kind in DECLARED]
)
def test_each_field_is_an_option_with_its_default(command: str, kind: type) -> None:
    found = COMMANDS[tuple(command.split())]
    options, context = {option.name: option for option in found.params}, click.Context(found)
    for declared in options_of(kind):
        option = options[declared.name]
        assert isinstance(option, click.Option) and option.help == declared.declaration.help
        assert option.default == declared.default or (option.default is None and declared.default == ())
        assert option.multiple is declared.many and option.is_flag is (declared.kind is bool)
        shown, values = declared.declaration.shown, declared.declaration.values
        assert option.hidden is (isinstance(values, OneOf) and len(values.values) == 1), "only if there is no choice"
        if shown is None and not option.hidden and declared.default not in (None, (), False):
            text = " ".join((option.get_help_record(context) or ("", ""))[1].split())
            default = declared.default
            value = str(default[0] if isinstance(default, tuple) else default)
            value = declared.label if default is True else value
            assert f"[default: {value}" in text, (declared.name, text)


def test_what_presets_say_is_read_from_them() -> None:
    helps = {option.name: option.declaration.help for option in options_of(Recipe)}
    assert helps["guided"].endswith("On in `balanced` and `best`.")
    assert helps["corrected"].endswith("On in `fast`, `balanced` and `best`.")
    assert "0.25 in `fast`, 0.5 in `balanced`, else 1.0." in helps["corrected_share"]
    assert {"method", *(name for preset in PRESETS.values() for name in preset)} == {
        option.name for option in options_of(Recipe) if option.declaration.shown == ""
    }


def test_long_helps_are_in_sections(run: Run) -> None:
    for command, headings in SECTIONS.items():
        lines = run(*command.split(), "--help").out.splitlines()
        found = [line.rstrip(":") for line in lines if line.endswith(":") and not line.startswith(" ")]
        assert found == headings, command


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

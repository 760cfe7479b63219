"""From fields of options to options of the command line, and help in sections."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from r1quant.core.options import OneOf, Option, Size, Text, Within, options_of
from r1quant.jobs.setup import SERVER

F = TypeVar("F", bound=Callable[..., Any])
R = TypeVar("R")
Given = Mapping[str, object]  # what was given of the options of a command, by the names of their fields
OTHER = "Other options"
# In the order in which a help shows them.
HEADINGS = (
    "Bits", "Budget instead of bits", "Rounding", "Transforms before rounding", "Calibration",
    "Text", "Problems", "Tasks", "Loads", "Repeats", "Hardware", "Texts", "Formats", "Prompts", "Answers",
    "Output", "Floats", "GGUF", "Importance for K-quants of GGUF", "ONNX",
    "Evidence", "Safety", "Hub", "Backends and servers", "Device", "Gates", OTHER,
)  # fmt: skip


class Value(click.ParamType):  # type: ignore[type-arg]  # generic in new versions of click alone
    """The values of a field. A text that stands for none passes: the dataclass says what is wrong with it."""

    def __init__(self, option: Option) -> None:
        self.option = option
        self.name = _kind(option)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str | None:
        values = self.option.declaration.values
        return f"[{'|'.join(map(str, values.values))}]" if isinstance(values, OneOf) else None

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> object:
        return value

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        values = self.option.declaration.values
        if self.option.kind is Path:
            return [CompletionItem(incomplete, type="file")]
        known = _known(values)
        before, comma, last = incomplete.rpartition(",") if self.option.commas else ("", "", incomplete)
        return [CompletionItem(f"{before}{comma}{value}") for value in map(str, known) if value.startswith(last)]


def _known(values: object) -> Iterable[object]:
    """Values that can be named before a model is looked at."""
    if isinstance(values, OneOf):
        return values.values
    if isinstance(values, Text) and values.cards:
        from r1quant.hardware.cards import cards

        return list(cards())
    return values.suggestions if isinstance(values, Text) else ()


class Word(click.ParamType):  # type: ignore[type-arg]
    """Any text; some of the possible ones are shown and completed, and the job says what is wrong with others."""

    name = "text"

    def __init__(self, known: tuple[str, ...]) -> None:
        self.known = known

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return f"[{'|'.join(self.known)}]"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(value) for value in self.known if value.startswith(incomplete)]


class ModelName(click.ParamType):  # type: ignore[type-arg]
    """A folder, a file or a Hub id; folders that hold a model and GGUF files are completed."""

    name = "text"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        head, slash, _ = incomplete.rpartition("/")
        try:
            inner = sorted(Path(head + slash or ".").expanduser().iterdir())
        except OSError:
            return []
        names = [f"{head}{slash}{path.name}" for path in inner if _is_model(path)]
        return [CompletionItem(name) for name in names if name.startswith(incomplete)] or [
            CompletionItem(incomplete, type="file")
        ]


def _is_model(path: Path) -> bool:
    return path.suffix == ".gguf" or (path / "config.json").is_file()


class GroupedOption(click.Option):
    """An option that stands under a heading."""

    def __init__(self, *names: Any, group: str = OTHER, values: object = None, **attributes: object) -> None:
        super().__init__(*names, **attributes)  # type: ignore[arg-type]  # whatever click.option was given
        self.group = group
        self.values = values

    def get_help_extra(self, ctx: click.Context) -> Any:
        """The default and, of a number, the range."""
        extra = super().get_help_extra(ctx)
        bounds = self.values.range if isinstance(self.values, Within) else ""
        return {**extra, "range": bounds} if bounds else extra


class Grouped(click.Command):
    """A command whose help has its options in sections."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            row = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if row is not None:
                sections.setdefault(getattr(parameter, "group", OTHER), []).append(row)
        for heading in sorted(sections, key=HEADINGS.index):
            with formatter.section(heading if len(sections) > 1 else "Options"):
                formatter.write_dl(sections[heading])


def takes(*kinds: type, but: tuple[str, ...] = ()) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Decorates a command: it has an option for each field of these dataclasses, but not for some, and gets those that
    were given, and only those, as `given`."""
    options = [option for kind in kinds for option in options_of(kind) if option.name not in but]

    def decorate(function: Callable[..., R]) -> Callable[..., R]:
        @click.pass_context
        @functools.wraps(function)
        def call(context: click.Context, /, *words: object, **values: object) -> R:
            given = given_of(context, *kinds)
            rest = {name: value for name, value in values.items() if name not in {one.name for one in options}}
            return function(*words, given=given, **rest)

        for one in reversed(options):
            call = _decorator(one)(call)
        return call

    return decorate


def given_of(context: click.Context, *kinds: type) -> Given:
    """What was given of the options of these dataclasses, rather than left at its default."""
    return {
        one.name: one.parse(context.params[one.name])
        for kind in kinds
        for one in options_of(kind)
        if context.get_parameter_source(one.name) is ParameterSource.COMMANDLINE
    }


def build(kind: Callable[..., R], given: Given) -> R:
    """A dataclass of options, with what was given over its defaults. Raises RecipeError."""
    return kind(**given)


def part_of(kind: type, given: Given) -> Given:
    """Those that are options of this dataclass."""
    names = {option.name for option in options_of(kind)}
    return {name: value for name, value in given.items() if name in names}


def at_server(given: Given) -> Given:
    """With the backend openai for a model whose server is named and whose backend is not."""
    servers = {"base_url": "backend", "base_urls": "backend", "baseline_url": "baseline_backend"}
    return {**{backend: SERVER for urls, backend in servers.items() if given.get(urls)}, **given}


def _decorator(option: Option) -> Callable[[F], F]:
    declaration = option.declaration
    return click.option(
        "/".join(option.flags),
        option.name,
        cls=GroupedOption,
        group=declaration.group,
        values=declaration.values,
        help=declaration.help,
        hidden=isinstance(declaration.values, OneOf) and len(declaration.values.values) == 1,  # nothing to choose
        default=option.default,
        show_default=True if declaration.shown is None else declaration.shown or False,
        **({"is_flag": True} if option.kind is bool else {"type": Value(option), "multiple": option.many}),
    )


def _kind(option: Option) -> str:
    if isinstance(option.declaration.values, Size):
        return "size"
    return {int: "integer", float: "float", Path: "path"}.get(option.kind, "text")

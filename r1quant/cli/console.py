"""Owns stdout, stderr, progress and exit codes.

With --json, stdout is exactly one JSON object; an error is one too. Prose and progress go to stderr.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from r1quant.core.formatting import seconds_text
from r1quant.core.platforms import check_platform
from r1quant.errors import R1QuantError, RecipeError
from r1quant.storage.atomic import write_bytes

F = TypeVar("F", bound=Callable[..., Any])
INTERRUPTED = 130


def run(command: click.Command, words: Sequence[str]) -> int:
    """Runs a command and turns whatever happens into an exit code and at most two lines."""
    as_json, debug = "--json" in words, "--debug" in words
    failure: Exception
    try:
        check_platform(sys.platform)
        result = command.main(args=list(words), prog_name="r1quant", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except R1QuantError as error:
        failure, code = error, error.exit_code
        _report(error.kind, error.message, error.hint, as_json)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return 2
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "r1quant"
        _report("UsageError", error.format_message(), f"see {path} --help", as_json)
        return 2
    except (KeyboardInterrupt, click.Abort):
        kept = "finished layers are kept. " if words[:1] == ["quantize"] else ""
        again = "r1quant " + shlex.join(words)
        _report("Interrupted", f"interrupted; {kept}Go on with:", again, as_json)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        failure, code = error, 3
        where = f": {error.filename}" if error.filename is not None else ""
        hint = "check the path, its permissions and its disk"
        _report(type(error).__name__, f"{error.strerror or error}{where}", hint, as_json)
    except Exception as error:
        failure, code = error, 3
        reason = " ".join(str(error).split()) or type(error).__name__
        _report(
            type(error).__name__, f"unexpected: {reason}", "run again with --debug and report the traceback", as_json
        )
    if debug:
        traceback.print_exception(failure, file=sys.stderr)
    return code


def _report(kind: str, message: str, hint: str, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"error": {"kind": kind, "message": message, "hint": hint}}, ensure_ascii=False))
    if kind == "Interrupted":
        click.echo(f"{message}\n{hint}", err=True)
    elif not as_json:
        click.echo(f"error: {message}\n{hint}", err=True)


def common(function: F) -> F:
    """The options that every command has."""
    function = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")(function)
    return click.option("--debug", is_flag=True, help="Show the traceback of an error.")(function)


def recorded(function: F) -> F:
    """The option --record of commands that measure. A file that cannot be written is refused before they begin."""
    kind = click.Path(path_type=Path)
    help = "Also write the JSON record to this file."
    return click.option("--record", type=kind, callback=_writable, help=help)(function)


def _writable(context: click.Context, option: click.Parameter, record: Path | None) -> Path | None:
    if record is not None and not record.parent.is_dir():
        raise RecipeError(f"there is no folder {record.parent} for the record", "make it, or choose another --record")
    if record is not None and record.is_dir():
        raise RecipeError(f"{record} is a folder", "choose a file for --record")
    return record


def write_record(record: Path | None, result: Mapping[str, Any]) -> None:
    """The result of a command into the file of --record, if there is one, whole or not at all."""
    if record is not None:
        write_bytes(record, (json.dumps(result, indent=1, ensure_ascii=False) + "\n").encode())


def emit(result: Mapping[str, Any], as_json: bool, show: Callable[[], None]) -> None:
    """The result of a command: JSON, or what `show` prints."""
    if as_json:
        click.echo(json.dumps(result, ensure_ascii=False))
    else:
        show()


def table(rows: Sequence[Sequence[str]], title: str = "", heading: bool = True) -> None:
    """A table on stdout. The first row is the heading; numbers are told by their look and stand right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    drawn = Table(title=title or None, box=box.SIMPLE_HEAD, show_header=heading, title_justify="left")
    head, body = (rows[0], rows[1:]) if heading else ([""] * len(rows[0]), rows)
    for i, name in enumerate(head):
        numeric = bool(body) and all(row[i][:1].isdigit() or row[i][:1] in "-+×" for row in body if row[i])
        drawn.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in body:
        drawn.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 110, highlight=False).print(drawn)


def note(line: str) -> None:
    click.echo(line, err=True)


class Plain:
    """Progress as lines on stderr, at most one in two seconds beside those that end a unit."""

    def __init__(self) -> None:
        self._total, self._done, self._said, self._begun, self._task = 1.0, 0.0, 0.0, 0.0, ""

    def begin(self, task: str, total: float) -> None:
        self._task, self._total, self._done = task, max(total, 1e-9), 0.0
        self._begun = self._said = time.monotonic()

    def advance(self, amount: float = 1, text: str = "") -> None:
        self._done += amount
        now = time.monotonic()
        if text.startswith("layer ") or now - self._said > 2:
            self._said = now
            left = (now - self._begun) / self._done * max(self._total - self._done, 0) if self._done else 0
            time_left = f"about {seconds_text(max(left, 1.0), digits=2)} left" if self._done else ""
            note(f"{self._task} {self._done / self._total:4.0%}  {time_left}  {text}".rstrip())

    def note(self, line: str) -> None:
        note(line)


class Bar:
    """Progress as a bar with an ETA on a terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}", style="dim"),
            console=Console(stderr=True),
        )
        self._task: Any = None

    def begin(self, task: str, total: float) -> None:
        self._progress.start()
        if self._task is not None:
            self._progress.update(self._task, visible=False)
        self._task = self._progress.add_task(task, total=total, text="")

    def advance(self, amount: float = 1, text: str = "") -> None:
        self._progress.update(self._task, advance=amount, text=text)

    def note(self, line: str) -> None:
        self._progress.console.print(line, highlight=False)

    def stop(self) -> None:
        self._progress.stop()


class watching:
    """A Progress fit for where stderr goes; the terminal is restored whatever happens."""

    def __enter__(self) -> Bar | Plain:
        self._shown = Bar() if sys.stderr.isatty() else Plain()
        return self._shown

    def __exit__(self, *_: object) -> None:
        if isinstance(self._shown, Bar):
            self._shown.stop()

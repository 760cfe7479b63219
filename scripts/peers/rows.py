"""What is compared: a row for each quantizer and setting. Plain data, and the command that runs a row."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Protocol, TypeVar

import click
from measuring import R1QUANT

PEERS = Path(__file__).resolve().parent
OURS = "r1quant"
BUDGETS = {"--target-bpw", "--target-size"}  # which take the place of --bits


class Named(Protocol):
    """A row of any comparison."""

    @property
    def name(self) -> str: ...


AnyRow = TypeVar("AnyRow", bound=Named)


@dataclass(frozen=True)
class Row:
    """One quantizer in one setting.

    setting      what a reader is told of it
    environment  the name of its environment; empty for ours
    script       in this folder, run in that environment with `options`
    floats       in this folder, writes what `script` made as float weights, where r1quant does not read it
    flags        of `r1quant quantize`, where the row is ours
    bits         those that it can do
    symmetric    whether its grid is
    windows      so many of the calibration windows are used; None for all
    """

    name: str
    tool: str
    setting: str
    environment: str = ""
    script: str = ""
    floats: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    bits: tuple[int, ...] = (2, 3, 4, 8)
    symmetric: bool = True
    windows: int | None = None

    @property
    def told(self) -> dict[str, Any]:
        """What the record says of it."""
        return {"name": self.name, "tool": self.tool, "setting": self.setting, "symmetric": self.symmetric}


def ours(name: str, flags: Iterable[str]) -> Row:
    """A row of r1quant with any flags of `quantize`."""
    flags = tuple(flags)
    return Row(name, OURS, " ".join(flags) or "default", flags=flags, symmetric="--asymmetric" not in flags)


def _gptqmodel(suffix: str, setting: str, options: Mapping[str, Any], **others: Any) -> Row:
    name = f"gptqmodel{suffix}"
    return Row(name, "gptqmodel", setting, "gptqmodel", "gptqmodel_quantize.py", options=options, **others)


def _llmcompressor(method: str, setting: str, windows: int | None = None) -> Row:
    options = {"method": method}
    name, script = f"llmcompressor-{method}", "llmcompressor_quantize.py"
    return Row(name, "llmcompressor", setting, "llmcompressor", script, options=options, windows=windows)


def _onnxruntime(algorithm: str, setting: str, symmetric: bool, bits: tuple[int, ...]) -> Row:
    return Row(
        f"onnxruntime-{algorithm}", "onnxruntime", setting, "genai", "onnxruntime_quantize.py",
        "onnxruntime_floats.py", {"algorithm": algorithm}, bits=bits, symmetric=symmetric,
    )  # fmt: skip


def _auto_round(suffix: str, setting: str, options: Mapping[str, Any]) -> Row:
    return Row(f"auto-round{suffix}", "auto-round", setting, "auto-round", "auto_round_quantize.py", options=options)


AWQ = {"quant_method": "awq", "format": "gemm", "sym": False}
ROWS = (
    ours(OURS, ()),
    ours("r1quant-fast", ("--preset", "fast")),
    ours("r1quant-balanced", ("--preset", "balanced")),
    ours("r1quant-best", ("--preset", "best")),
    ours("r1quant-gptq", ("--method", "gptq")),
    ours("r1quant-rtn", ("--method", "rtn")),
    _onnxruntime("rtn", "MatMulNBits, nearest", True, (4, 8)),
    _onnxruntime("hqq", "MatMulNBits, HQQ", False, (4,)),
    _llmcompressor("rtn", "nearest"),
    _llmcompressor("gptq", "GPTQ, default (act-order static)"),
    _llmcompressor("awq", "AWQ, first 16 windows", 16),
    _auto_round("-rtn", "iters=0", {"iters": 0}),
    _gptqmodel("", "GPTQ, default", {}),
    _gptqmodel("-act-order", "GPTQ, desc_act", {"desc_act": True}),
    _gptqmodel("-mse", "GPTQ, mse=2.4", {"mse": 2.4}),
    _gptqmodel("-awq", "AWQ", AWQ, bits=(4,), symmetric=False),
    _auto_round("", "default (200 iterations)", {}),
)


def chosen(rows: Iterable[AnyRow], patterns: Iterable[str]) -> list[AnyRow]:
    """Those of a name that a pattern matches, as `gptqmodel*`; all without patterns.

    Raises click.UsageError where a pattern matches none.
    """
    rows, patterns = list(rows), list(patterns)
    for pattern in patterns:
        if not any(fnmatch(row.name, pattern) for row in rows):
            raise click.UsageError(f"no row is called {pattern}: {', '.join(row.name for row in rows)}")
    return [row for row in rows if not patterns or any(fnmatch(row.name, pattern) for pattern in patterns)]


def named(specs: Iterable[str], known: Iterable[AnyRow], make: Callable[[str, list[str]], AnyRow]) -> list[AnyRow]:
    """Rows of ours from NAME=FLAGS. Raises click.UsageError where a name is taken or missing."""
    taken, rows = {row.name for row in known}, []
    for spec in specs:
        name, equals, flags = spec.partition("=")
        if not (name and equals) or name in taken:
            raise click.UsageError(f"{spec!r} is not NAME=FLAGS with a new name")
        taken.add(name)
        rows.append(make(name, shlex.split(flags)))
    return rows


@dataclass(frozen=True)
class Given:
    """What every row is given: the same tokens, as a file for peers and as the flags of `quantize` that make them."""

    model: Path
    tokens: Path
    flags: tuple[str, ...]
    bits: int
    group_size: int


def command(row: Row, given: Given, out: Path, python: Path) -> list[str]:
    """What quantizes to `out`. Flags of a row of ours come last, so that they hold."""
    bits = [] if BUDGETS.intersection(row.flags) else ["--bits", str(given.bits)]
    grid = [*bits, "--group-size", str(given.group_size)]
    if row.tool == OURS:
        asked = [str(given.model), "-o", str(out), *grid, *given.flags, "--device", "cpu"]
        return [*R1QUANT, "quantize", *asked, *row.flags]
    windows = ["--windows", str(row.windows)] if row.windows else []
    job = [str(given.model), str(given.tokens), str(out), *grid, *windows, "--options", json.dumps(dict(row.options))]
    return [str(python), str(PEERS / row.script), *job]

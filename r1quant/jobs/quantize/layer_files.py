"""How finished linears lie in a run directory: codes packed to their bits, with the report as metadata."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from r1quant.checkpoint.safetensors import read_header
from r1quant.checkpoint.tensorfile import write_arrays
from r1quant.core import bits as packing
from r1quant.core.qlinear import QLinear
from r1quant.engine.linear_report import LinearReport, Rounded


def write(path: Path, linears: Iterable[Rounded]) -> None:
    """One file of any number of linears. Atomic."""
    arrays: dict[str, Any] = {}
    reports = []
    for rounded in linears:
        q, name = rounded.qlinear, rounded.report.name
        flat = q.codes.reshape(-1)
        arrays[f"{name}.codes"] = packing.pack(np.pad(flat, (0, -flat.size % 32)), q.bits)
        arrays |= {f"{name}.scale": q.scale, f"{name}.zero": q.zero, f"{name}.group": q.group}
        arrays[f"{name}.shape"] = np.array([*q.shape, q.bits], np.int64)
        reports.append(rounded.report.as_dict())
    write_arrays(path, arrays, {"reports": json.dumps(reports)})


def read(path: Path, name: str) -> QLinear:
    """One linear out of a file."""
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        out, columns, bits = (int(n) for n in file.get_tensor(f"{name}.shape"))
        codes = packing.unpack(file.get_tensor(f"{name}.codes"), bits)[: out * columns].reshape(out, columns)
        scale, zero, group = (file.get_tensor(f"{name}.{field}") for field in ("scale", "zero", "group"))
    return QLinear(codes, scale, zero, group, bits)


def reports(path: Path) -> list[LinearReport]:
    """The reports of the linears in a file."""
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        return [LinearReport(**entry) for entry in json.loads(file.metadata()["reports"])]


def names(path: Path) -> list[str]:
    """The linears in a file."""
    return [name.removesuffix(".codes") for name in read_header(path) if name.endswith(".codes")]

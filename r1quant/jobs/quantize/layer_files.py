"""How finished linears lie in a run directory: their arrays, with kinds and reports as metadata."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from r1quant.checkpoint.tensorfile import write_arrays
from r1quant.core.grids import KINDS
from r1quant.core.qlinear import QuantizedLinear
from r1quant.engine.linear_report import Rounded
from r1quant.records.quantization import LinearReport
from r1quant.records.writing import as_json


def write(path: Path, linears: Iterable[Rounded]) -> None:
    """One file of any number of linears. Atomic."""
    done = {rounded.report.name: rounded for rounded in linears}
    arrays = {f"{name}.{key}": value for name, one in done.items() for key, value in one.qlinear.arrays().items()}
    kinds = {name: one.qlinear.kind for name, one in done.items()}
    reports = [as_json(one.report) for one in done.values()]
    write_arrays(path, arrays, {"reports": json.dumps(reports), "kinds": json.dumps(kinds)})


def read(path: Path, name: str) -> QuantizedLinear:
    """One linear out of a file."""
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        kind, prefix = json.loads(file.metadata()["kinds"])[name], f"{name}."
        keys = [key for key in file.keys() if key.startswith(prefix)]  # noqa: SIM118  (no mapping)
        return KINDS[kind].restore({key.removeprefix(prefix): file.get_tensor(key) for key in keys})


def reports(path: Path) -> list[LinearReport]:
    """The reports of the linears in a file."""
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        return [LinearReport(**entry) for entry in json.loads(file.metadata()["reports"])]

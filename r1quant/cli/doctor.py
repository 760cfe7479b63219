"""r1quant doctor"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from r1quant.cli import console
from r1quant.cli.options import ModelName
from r1quant.core.formatting import bytes_text

if TYPE_CHECKING:
    from r1quant.jobs.doctor import Diagnosis


@click.command()
@click.argument("model", required=False, type=ModelName())
@console.common
def doctor(model: str | None, as_json: bool, debug: bool) -> int:
    """Say what this machine has of all that r1quant can use and, with MODEL, what is peculiar about that model.

    Backends are really loaded. Exits with 1 if the installation is broken, else with 0.
    """
    from r1quant.jobs.doctor import diagnose

    diagnosis = diagnose(model)

    def show() -> None:
        console.table(_rows(diagnosis), heading=False)
        for line in diagnosis.advice:
            console.note(f"* {line}")

    console.emit(diagnosis.as_dict(), as_json, show)
    return 1 if diagnosis.broken else 0


def _rows(diagnosis: Diagnosis) -> list[list[str]]:
    machine = diagnosis.machine
    gpus = [f"{gpu.name}, {bytes_text(gpu.memory_bytes)}" for gpu in machine.gpus]
    rows = [[name, version or "not installed"] for name, version in diagnosis.packages.items()]
    for name, state in diagnosis.backends.items():
        rows.append([f"backend {name}", "works" if state.works else f"does not work: {state.reason}"])
    rows += [
        ["python", machine.python],
        ["platform", machine.platform],
        ["processor", f"{machine.processor}, {machine.cores} cores"],
        ["memory", bytes_text(machine.memory_bytes)],
        ["free disk here", bytes_text(machine.free_disk_bytes)],
        ["instructions", ", ".join(machine.instructions) or "none that matter"],
        ["GPUs", "\n".join(gpus) or "none"],
    ]
    rows += [[f"${name}", value] for name, value in diagnosis.environment.items()]
    for name, cache in diagnosis.caches.items():
        rows.append([f"cache of {'the Hub' if name == 'hub' else name}", f"{bytes_text(cache.bytes)} in {cache.path}"])
    return rows

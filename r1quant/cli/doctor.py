"""r1quant doctor"""

from __future__ import annotations

import click

from r1quant.cli import console


@click.command()
@click.argument("model", required=False)
@console.common
def doctor(model: str | None, as_json: bool, debug: bool) -> None:
    """Say what this machine has of all that r1quant can use and, with MODEL, what is peculiar about that model."""
    from r1quant.jobs.doctor import doctor as job

    found = job(model)

    def show() -> None:
        machine = found["machine"]
        rows = [[name, version or "not installed"] for name, version in found["packages"].items()]
        rows += [
            ["python", machine["python"]],
            ["system", machine["system"]],
            ["cores", str(machine["cores"])],
            ["memory", console.gigabytes(machine["memory_bytes"] or 0)],
            ["free disk here", console.gigabytes(machine["free_disk_bytes"])],
            ["instructions", ", ".join(machine["instructions"]) or "none that matter"],
            ["GPUs", "\n".join(machine["gpus"]) or "none"],
        ]
        console.table(rows, heading=False)
        for line in found["advice"]:
            console.note(f"* {line}")

    console.emit(found, as_json, show)

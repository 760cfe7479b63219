"""r1quant pull-check"""

from __future__ import annotations

import click

from r1quant.cli import console


@click.command("pull-check")
@click.argument("dir")
@console.common
def pull_check(dir: str, as_json: bool, debug: bool) -> int:
    """Verify a downloaded model: every file of DIR against SHA256SUMS and provenance.json.

    Names what is missing, changed or extra, and exits with 1 if anything is. What git and the Hub's tools put beside
    the files (.gitattributes, .cache) is left aside.
    """
    from r1quant.jobs.publish.pull_check import pull_check as job

    with console.watching() as progress:
        done = job(dir, progress)
    found = done.as_dict()

    def show() -> None:
        if done.faults:
            console.table([["file", "what is wrong"], *([path, why] for path, why in done.faults.items())])
        right = len(found["files"]) - len(found["changed"]) - len(found["extra"])
        console.note(f"{right} files are as they were published, {len(found['failed'])} are not")
        console.note(f"sha256 of SHA256SUMS: {found['digest']}")

    console.emit(found, as_json, show)
    return 1 if done.faults else 0

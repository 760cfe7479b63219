"""r1quant publish"""

from __future__ import annotations

import click

from r1quant.cli import console
from r1quant.cli.options import Given, Grouped, GroupedOption, ModelName, build, takes
from r1quant.core.formatting import bytes_text
from r1quant.jobs.publish.options import PublishOptions
from r1quant.recipe import OUTPUT


@click.command(cls=Grouped)
@click.argument("out", required=False, type=ModelName())
@click.option(
    "--to",
    cls=GroupedOption,
    group=OUTPUT,
    required=True,
    help="Folder to write, or owner/name on the Hugging Face Hub.",
)
@takes(PublishOptions)
@console.common
def publish(out: str | None, to: str, given: Given, as_json: bool, debug: bool) -> int:
    """Give OUT away with its measurements, licence, checksums and provenance: in a folder, or on the Hub.

    OUT is a folder that quantize or export wrote, or one that holds several of those; left out, it is the quantized
    checkpoint last written into the current folder. Refused, with exit code 1, if a gate failed, records are missing
    or of other files, the licence is unknown or forbids it, or something looks like a secret. The token for the Hub is
    that of HF_TOKEN or of 'hf auth login'.
    """
    from r1quant.jobs.publish.run import publish as job

    with console.watching() as progress:
        done = job(out, build(PublishOptions, {"to": to, **given}), progress)
    found = done.as_dict()

    def show() -> None:
        if not done.done:
            console.note(f"refused: {to} was not written")
        elif found["forced"]:
            console.note("published by --force, although:")
        for reason in found["refused"]:
            console.note(f"* {reason}")
        if not done.done:
            return
        rows = [["file", "size"], *([file["path"], bytes_text(file["bytes"])] for file in found["files"])]
        console.table([*rows, ["in all", bytes_text(found["bytes"])]])
        if found["folder"]:
            console.note(f"written to {found['folder']}")
        if found["repo"] and found["dry_run"]:
            console.note(f"nothing was uploaded to {found['repo']}")
        if found["commit"]:
            console.note(f"{len(found['sent'])} of {len(found['files'])} files sent and all checked: {found['commit']}")
        if found["extra"]:
            console.note(f"the repository has other files too, which pull-check will name: {', '.join(found['extra'])}")
        console.note(f"sha256 of SHA256SUMS: {found['digest']}")

    console.emit(found, as_json, show)
    return 0 if done.done else 1

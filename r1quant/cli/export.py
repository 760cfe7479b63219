"""r1quant export"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from r1quant.cli import console
from r1quant.cli.next_steps import show as show_next
from r1quant.core.formatting import bytes_text, seconds_text
from r1quant.registry import FORMATS


@click.command()
@click.argument("source", required=False)
@click.option("--to", required=True, help=f"One or more of {', '.join(FORMATS)}, with commas between.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Output.  [default: named after SOURCE and format]")
@click.option(
    "--type", "kind", default="auto", show_default=True, help="GGUF: auto (exact), q4_0, q8_0, bf16, Q4_K_M …"
)
@click.option("--embedding", help="exact, f16 or q8_0.  [default: exact]")
@click.option("--head", help="The output projection: exact, f16 or q8_0.  [default: exact]")
@click.option("--dtype", help="Floats: float16, bfloat16, float32.  [default: as stored; ONNX float32]")
@click.option("--onnx-style", "style", default="matmulnbits", show_default=True, help="matmulnbits, or qdq (standard).")
@click.option("--accuracy-level", type=int, help="ONNX: what is computed in: 1 float32, 4 int8, faster.  [default: 1]")
@click.option("--zero-points", is_flag=True, help="ONNX: write those of symmetric grids too; DirectML wants them.")
@click.option("--threads", default=0, show_default=True, help="ONNX: threads for onnxruntime-genai; 0 is its default.")
@click.option("--split-bytes", type=int, help="GGUF: about how large a part may become.")
@click.option("--pre", help="GGUF: the pre-tokenizer's name, where it cannot be told.")
@click.option(
    "--imatrix",
    default="guided",
    show_default=True,
    help="K-quants: guided (measured, tokens count by how much the answer depends on them), plain (measured, all count "
    "alike), none, or an importance matrix's file.",
)
@click.option("--calib", help="K-quants: calibration text, as for quantize.  [default: the bundled set]")
@click.option("--samples", default=64, show_default=True, help="K-quants: calibration windows.")
@click.option("--seq-len", default=512, show_default=True, help="K-quants: tokens in a window.")
@click.option("--seed", default=0, show_default=True, help="K-quants: seed of the calibration's shuffle.")
@console.common
def export(source: str | None, to: str, out: Path | None, kind: str, as_json: bool, debug: bool, **rest: Any) -> None:
    """Write SOURCE in other formats, with the same weights bit for bit.

    SOURCE is a quantized checkpoint (GPTQ, AWQ, compressed-tensors), a GGUF file, an ONNX folder, or a float model,
    which is converted without quantizing. Left out, it is the quantized checkpoint last written into this folder. What
    a format cannot hold exactly is refused; K-quants and rounded embeddings are named as such.
    """
    from r1quant.jobs.artifacts import newest_output
    from r1quant.jobs.export.run import export as job
    from r1quant.jobs.serving import as_dict, next_steps
    from r1quant.planning.targets import ExportOptions

    name = source if source is not None else newest_output(Path())
    formats = [word.strip() for word in to.split(",") if word.strip()]
    with console.watching() as progress:
        done = job(name, formats, out, ExportOptions(type=kind, **rest), progress)
    steps = [next_steps(written.path) for written in done.written]
    content = {**done.as_dict(), "next": [as_dict(step) for artifact in steps for step in artifact]}

    def show() -> None:
        rows = [["format", "written", "size", "weights"]]
        for written in done.written:
            rounded = f"{len(written.inexact)} tensors rounded" if written.inexact else "exact"
            rows.append([written.format, str(written.path), bytes_text(written.nbytes), rounded])
        console.table(rows)
        console.note(f"{seconds_text(done.seconds)}, peak memory {bytes_text(done.peak_rss_bytes)}")
        for artifact in steps:
            show_next(artifact)

    console.emit(content, as_json, show)

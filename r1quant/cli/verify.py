"""r1quant verify"""

from __future__ import annotations

from pathlib import Path

import click

from r1quant.cli import console


@click.command()
@click.argument("out", required=False)
@click.option("--baseline", help="The float model it was made from.  [default: what its record says]")
@click.option("--text", help="A text or JSONL file to measure on.  [default: the bundled held-out text]")
@click.option("--windows", default=24, show_default=True, help="Windows of text.")
@click.option("--seq-len", default=512, show_default=True, help="Tokens in a window.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, or auto.")
@click.option("--dtype", default="float32", show_default=True, help="Precision of both models: float32, bfloat16.")
@click.option("--backend", default="torch", show_default=True, help="Runs OUT: torch, onnxruntime, llamacpp, or auto.")
@click.option("--gate", "gates", multiple=True, help="Exit with 1 unless this holds: kl.mean<0.05. Repeatable.")
@click.option("--record", type=click.Path(path_type=Path), help="Also write the JSON record to this file.")
@console.common
def verify(
    out: str | None,
    baseline: str | None,
    text: str | None,
    windows: int,
    seq_len: int,
    device: str,
    dtype: str,
    backend: str,
    gates: tuple[str, ...],
    record: Path | None,
    as_json: bool,
    debug: bool,
) -> int:
    """Measure how far OUT is from the model it was made from: perplexity of both, KL divergence, top-1 agreement.

    OUT left out is the quantized checkpoint last written into the current folder.
    """
    from r1quant.jobs.verify import verify as job
    from r1quant.recipe import read_settings

    with console.watching() as progress:
        stated = read_settings(Path.cwd()).gates
        done = job(out, baseline, text, windows, seq_len, device, dtype, progress, gates or stated, backend)
    found = done.as_dict()
    if record is not None:
        import json

        from r1quant.atomic import write_bytes

        write_bytes(record, (json.dumps(found, indent=1, ensure_ascii=False) + "\n").encode())

    def show() -> None:
        ppl, kl = found["perplexity"], found["kl"]
        console.table(
            [
                ["measure", "baseline", "quantized", "95 % interval"],
                ["perplexity", f"{ppl['baseline']:.4f}", f"{ppl['quantized']:.4f}", ""],
                ["perplexity, ratio", "1", f"{ppl['ratio']:.4f}", between(ppl["ratio_ci95"], 4)],
                ["KL divergence, mean (nats)", "0", f"{kl['mean']:.6f}", between(kl["mean_ci95"], 6)],
                ["KL divergence, median", "0", f"{kl['median']:.6f}", ""],
                ["KL divergence, 99th percentile", "0", f"{kl['p99']:.6f}", ""],
                ["change of probability, RMS", "0", f"{found['delta_p_rms']:.6f}", ""],
                ["top-1 agreement", "1", f"{found['top1']:.4f}", between(found["top1_ci95"], 4)],
            ],
            f"{found['out']} against {found['model']}, {found['tokens']} tokens of {found['text']['source']}",
        )

        for verdict in found["gates"]:
            console.note(
                f"{'passed' if verdict['passed'] else 'FAILED'}: {verdict['gate']} (it is {verdict['value']:.6g})"
            )

    console.emit(found, as_json, show)
    return 0 if done.passed else 1


def between(bounds: list[float] | None, digits: int) -> str:
    """An interval for people; empty where one window of text gives none."""
    return "" if bounds is None else f"{bounds[0]:.{digits}f} .. {bounds[1]:.{digits}f}"

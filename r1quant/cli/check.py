"""r1quant check"""

from __future__ import annotations

import click

from r1quant.cli import console


@click.command()
@click.argument("a")
@click.argument("b")
@click.option(
    "--logits/--no-logits",
    default=None,
    help="Also run both models on a text.",
    show_default="if both runtimes are installed",
)
@click.option("--tokens", default=64, show_default=True, help="Tokens of the text that both models are run on.")
@console.common
def check(a: str, b: str, logits: bool | None, tokens: int, as_json: bool, debug: bool) -> int:
    """Prove that A and B, of any two formats, hold the same weights: dequantized, every number equal.

    Names the first tensor that differs, and exits with 1 if one does. If both runtimes are installed, both models
    are run on the same text, and the distance of their log-probabilities is shown as well.
    """
    from r1quant.jobs.check.compare_logits import NotCompared, compare_logits
    from r1quant.jobs.check.run import check as job

    with console.watching() as progress:
        checked = job(a, b, progress)
        compared = compare_logits(checked.a, checked.b, tokens, logits, progress)
    found = {**checked.as_dict(), "logits": compared.as_dict()}

    def show() -> None:
        first = found["first_difference"]
        table = [
            ["tensors compared", f"{found['tensors']:,}"],
            ["quantized in both", f"{found['linears']:,}"],
            ["identical", "yes, bit for bit" if checked.identical else "NO"],
        ]
        if first:
            where = f"{first['tensor']}{first['index']}: {first['a']:g} and {first['b']:g}"
            table.append(["first difference", where])
            table.append(["", f"{first['differing']:,} numbers differ, by {first['largest']:g} at most"])
            table.append(["tensors that differ", f"{len(found['differing']):,}"])
        if checked.only_in_one:
            table.append(["only in one of them", "\n".join(checked.only_in_one[:5])])
        if isinstance(compared, NotCompared):
            table.append(["logits", compared.reason])
        else:
            table.append(["run by", f"{compared.a} and {compared.b}, {compared.tokens} tokens"])
            table.append(["largest |d log-prob|", f"{compared.max_delta_log_probability:.2e}"])
            table.append(["mean KL (nats)", f"{compared.mean_kl:.2e}"])
        console.table(table, heading=False)

    console.emit(found, as_json, show)
    return 0 if checked.identical else 1

"""How many held-out problems tiny-r1 solves greedily, before and after quantization.

    python scripts/tiny_accuracy.py --bits 8 --bits 4 --bits 3 --bits 2 --record reports/tiny-r1.json

Every quantized model is made by `r1quant.quantize` in a temporary folder and read back from its files.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

import r1quant
from r1quant.atomic import write_bytes
from r1quant.forward import Weights
from r1quant.provenance import environment
from r1quant.sources import embedded_folder, open_model

sys.path.insert(0, str(Path(__file__).resolve().parent))

from train_tiny import accuracy, held_out


def load(weights: Weights) -> Any:
    """A transformers model with these weights, computed in float32."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = {k: v for k, v in weights.config.items() if k != "quantization_config"}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.float32)
    model.load_state_dict({name: weights.read(name).float() for name in weights.tensors})
    return model


@click.command(help=__doc__)
@click.option("--bits", type=int, multiple=True, default=(8, 4, 3, 2), show_default=True)
@click.option("--method", multiple=True, default=("rtn", "gptq"), show_default=True)
@click.option("--group-size", default=128, show_default=True)
@click.option("--problems", default=400, show_default=True)
@click.option("--record", type=click.Path(path_type=Path))
def main(bits: tuple[int, ...], method: tuple[str, ...], group_size: int, problems: int, record: Path | None) -> None:
    from tokenizers import Tokenizer

    from r1quant.jobs.artifacts import open_artifact

    tokenizer = Tokenizer.from_file(str(embedded_folder() / "tokenizer.json"))
    chosen = held_out()[:problems]
    rows = [{"model": "bf16", "accuracy": accuracy(load(open_model("tiny-r1")), tokenizer, chosen)}]
    print(rows[0], flush=True)
    with tempfile.TemporaryDirectory() as work:
        for name in method:
            for width in bits:
                out = Path(work) / f"{name}-{width}"
                options = {"scale_search": False} if name == "rtn" else {}
                r1quant.quantize("tiny-r1", out, method=name, bits=width, group_size=group_size, **options)
                model = load(open_artifact(out))
                row = {"model": f"{name} {width} bits g{group_size}", "accuracy": accuracy(model, tokenizer, chosen)}
                rows.append(row)
                print(row, flush=True)
    if record is not None:
        found = {"problems": len(chosen), "decoding": "greedy", "rows": rows, "environment": environment()}
        write_bytes(record, (json.dumps(found, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()

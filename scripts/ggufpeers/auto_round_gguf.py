"""auto-round's own GGUF export; options are those of its AutoRound, without any its default iterations.

    python auto_round_gguf.py MODEL TOKENS OUT --format gguf:q4_k_m [--options JSON]

MODEL is a folder with bf16 weights, TOKENS an .npy file, int64 [windows, seq_len]. OUT is a folder with one GGUF file;
OUT.json says which versions made it.
"""

from __future__ import annotations

import argparse
import json
import os
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 8  # its own default
LEAST = 1e-6  # of the mean importance


def raise_zeros() -> None:
    """Its search for the scales of Q3_K and Q6_K gives NaN where inputs have no importance at all, as the twin's empty
    channels have: a whole super-block is lost with them. Their weights are zero, so that a little changes nothing."""
    from auto_round.data_type import gguf

    search = gguf.search_gguf_scale_min_sym

    def raised(tensor: Any, bits: int, imatrix: Any, *others: Any, **named: Any) -> Any:
        if imatrix is not None:
            imatrix = imatrix.clamp(min=LEAST * float(imatrix.float().mean()))
        return search(tensor, bits, imatrix, *others, **named)

    gguf.search_gguf_scale_min_sym = raised


def check(path: Path) -> None:
    """Raises ValueError if a weight of the file is not finite: no program could compute with it."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    for tensor in GGUFReader(path).tensors:
        if not np.isfinite(dequantize(tensor.data, tensor.tensor_type)).all():
            raise ValueError(f"{tensor.name} holds weights that are not finite")


def main(model: str, tokens: np.ndarray, out: Path, form: str, options: dict[str, Any]) -> None:
    import torch
    from auto_round import AutoRound
    from transformers import AutoModelForCausalLM, AutoTokenizer

    raise_zeros()
    batches = [
        {"input_ids": rows, "attention_mask": torch.ones_like(rows)} for rows in torch.tensor(tokens).split(BATCH)
    ]
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    count, seq_len = tokens.shape
    tuner = AutoRound(
        network,
        AutoTokenizer.from_pretrained(model),
        scheme=form,
        dataset=batches,
        nsamples=count,
        seqlen=seq_len,
        batch_size=min(BATCH, count),
        device_map="cpu",
        **options,
    )
    place = Path(f"{out}.run")  # it makes a folder of its own naming there
    tuner.quantize_and_save(str(place), format=form)
    out.mkdir()
    check(next(place.rglob("*.gguf")).rename(out / "model.gguf"))
    versions = {name: metadata.version(name) for name in ("auto-round", "gguf", "torch", "transformers")}
    Path(f"{out}.json").write_text(json.dumps({"versions": versions}), "utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name in ("model", "tokens"):
        parser.add_argument(name)
    parser.add_argument("out", type=Path)
    parser.add_argument("--format", required=True)
    parser.add_argument("--options", type=json.loads, default={})
    given = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    main(given.model, np.load(given.tokens), given.out, given.format, given.options)

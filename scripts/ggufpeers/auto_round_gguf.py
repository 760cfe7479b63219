"""auto-round's own GGUF export; options are those of its AutoRound, without any its default iterations.

    python auto_round_gguf.py MODEL TOKENS OUT --format gguf:q4_k_m [--options JSON]

MODEL is a folder with bf16 weights, TOKENS an .npy file, int64 [windows, seq_len]. OUT is a folder with one GGUF file;
OUT.json says which versions made it, and how many blocks were mended.
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
# Where the float16 scales of a block lie, by the name of its type.
SCALES = {
    "Q2_K": (80, 84), "Q3_K": (108, 110), "Q4_K": (0, 4), "Q5_K": (0, 4), "Q6_K": (208, 210),
}  # fmt: skip


def mend(path: Path) -> int:
    """Sets scales that are not finite to zero, and says in how many blocks: rows that are wholly zero, as the twin's
    empty heads are, get NaN from it, which no program can compute with."""
    from gguf import GGML_QUANT_SIZES, GGUFReader

    mended = 0
    for tensor in GGUFReader(path, "r+").tensors:
        kind = tensor.tensor_type
        if kind.name in SCALES:
            blocks = tensor.data.reshape(-1, GGML_QUANT_SIZES[kind][1])
            scales = blocks[:, slice(*SCALES[kind.name])].copy().view(np.float16)
            bad = ~np.isfinite(scales)
            if bad.any():
                scales[bad] = 0
                blocks[:, slice(*SCALES[kind.name])] = scales.view(np.uint8)
                mended += int(bad.any(1).sum())
    return mended


def main(model: str, tokens: np.ndarray, out: Path, form: str, options: dict[str, Any]) -> None:
    import torch
    from auto_round import AutoRound
    from transformers import AutoModelForCausalLM, AutoTokenizer

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
    file = next(place.rglob("*.gguf")).rename(out / "model.gguf")
    versions = {name: metadata.version(name) for name in ("auto-round", "gguf", "torch", "transformers")}
    Path(f"{out}.json").write_text(json.dumps({"versions": versions, "mended": mend(file)}), "utf-8")


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

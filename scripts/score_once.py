"""Scores a text once with transformers, in float32: what `verify` with a known baseline is held against.

python scripts/score_once.py MODEL TEXT WINDOWS SEQ_LEN
"""

from __future__ import annotations

import math
import sys
from pathlib import Path


def main(model: str, text: str, windows: int, seq_len: int) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(model)(Path(text).read_text("utf-8"), add_special_tokens=False)["input_ids"]
    tokens = torch.tensor(ids[: windows * seq_len]).reshape(windows, seq_len)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    total = 0.0
    with torch.inference_mode():
        for window in tokens.split(4):
            scores = network(window).logits[:, :-1].log_softmax(-1)
            total -= float(scores.gather(-1, window[:, 1:, None]).double().sum())
    print(math.exp(total / (windows * (seq_len - 1))))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))

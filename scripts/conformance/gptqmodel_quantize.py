"""Quantizes a folder to GPTQ with gptqmodel, on the tokens that it is given.

    python gptqmodel_quantize.py MODEL TOKENS OUT --bits 4 --group-size 64 [--batch-size 1]

TOKENS is an .npy file, int64 [windows, seq_len]. All that is not named here is gptqmodel's default.
"""

from __future__ import annotations

import argparse
import os

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("model", "tokens", "out"):
        parser.add_argument(name)
    for name in ("--bits", "--group-size", "--batch-size"):
        parser.add_argument(name, type=int, required=True)
    given = parser.parse_args()

    from gptqmodel import GPTQModel, QuantizeConfig

    windows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in np.load(given.tokens).tolist()]
    config = QuantizeConfig(bits=given.bits, group_size=given.group_size, sym=True)
    model = GPTQModel.load(given.model, config, device="cpu")
    model.quantize(windows, batch_size=given.batch_size)
    model.save(given.out)


if __name__ == "__main__":
    workers = str(max(2, (os.cpu_count() or 1) // 2))  # it cannot load with the one that it takes on two cores
    os.environ |= {"GPTQMODEL_CPU_WORKERS": workers, "HF_HUB_OFFLINE": "1"}
    main()

"""Makes checkpoints with gptqmodel.

    python gptqmodel_make.py REQUEST.json

The request has `model` (a folder), `tokens` (an .npy file, int64 [windows, seq_len]) and `made`: for each folder to
write the values of gptqmodel's QuantizeConfig. A failure leaves error.txt in its folder, and the next one is begun.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from conformance.foreign import make_all


def make(request: dict[str, Any], out: Path, options: dict[str, Any]) -> None:
    from gptqmodel import GPTQModel, QuantizeConfig

    examples = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in np.load(request["tokens"]).tolist()]
    loaded = GPTQModel.load(request["model"], QuantizeConfig(**options), device="cpu")
    loaded.quantize(examples, batch_size=1)
    loaded.save(str(out))


if __name__ == "__main__":
    workers = str(max(2, (os.cpu_count() or 1) // 2))  # it cannot load with the one that it takes on two cores
    os.environ["GPTQMODEL_CPU_WORKERS"] = workers
    make_all(make)

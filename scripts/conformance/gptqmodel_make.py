"""Makes checkpoints with gptqmodel.

    python gptqmodel_make.py REQUEST.json

The request has `model` (a folder), `tokens` (an .npy file, int64 [windows, seq_len]) and `made`: for each folder to
write the values of gptqmodel's QuantizeConfig. A failure leaves error.txt in its folder, and the next one is begun.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np


def make(model: str, windows: np.ndarray, out: Path, options: dict[str, Any]) -> None:
    from gptqmodel import GPTQModel, QuantizeConfig

    examples = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in windows.tolist()]
    loaded = GPTQModel.load(model, QuantizeConfig(**options), device="cpu")
    loaded.quantize(examples, batch_size=1)
    loaded.save(str(out))


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    windows = np.load(request["tokens"])
    for name, options in request["made"].items():
        out = Path(name)
        try:
            make(request["model"], windows, out, options)
        except Exception:
            out.mkdir(exist_ok=True)
            (out / "error.txt").write_text(traceback.format_exc(), "utf-8")


if __name__ == "__main__":
    workers = str(max(2, (os.cpu_count() or 1) // 2))  # it cannot load with the one that it takes on two cores
    os.environ |= {"GPTQMODEL_CPU_WORKERS": workers, "HF_HUB_OFFLINE": "1"}
    main()

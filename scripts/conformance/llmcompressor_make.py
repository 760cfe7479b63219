"""Makes checkpoints with llmcompressor, rounded to nearest, without calibration.

    python llmcompressor_make.py REQUEST.json

The request has `model` (a folder) and `made`: for each folder to write {"scheme": the name of a preset, "group_size":
null or another than the preset's}. A failure leaves error.txt in its folder, and the next one is begun.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any


def make(folder: str, out: Path, scheme: str, group_size: int | None) -> None:
    import torch
    from compressed_tensors.quantization import preset_name_to_scheme
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from transformers import AutoModelForCausalLM

    chosen: Any = preset_name_to_scheme(scheme, ["Linear"])
    if group_size is not None:
        chosen.weights.group_size = group_size
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    oneshot(model=model, recipe=QuantizationModifier(config_groups={"group_0": chosen}, ignore=["lm_head"]))
    model.save_pretrained(str(out), save_compressed=True)


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    for name, options in request["made"].items():
        out = Path(name)
        try:
            make(request["model"], out, options["scheme"], options["group_size"])
        except Exception:
            out.mkdir(exist_ok=True)
            (out / "error.txt").write_text(traceback.format_exc(), "utf-8")


if __name__ == "__main__":
    os.environ |= {"HF_HUB_OFFLINE": "1"}
    main()

"""Makes checkpoints with llmcompressor, rounded to nearest, without calibration.

    python llmcompressor_make.py REQUEST.json

The request has `model` (a folder) and `made`: for each folder to write {"scheme": the name of a preset, "group_size":
null or another than the preset's}. A failure leaves error.txt in its folder, and the next one is begun.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conformance.foreign import make_all


def make(request: dict[str, Any], out: Path, options: dict[str, Any]) -> None:
    import torch
    from compressed_tensors.quantization import preset_name_to_scheme
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from transformers import AutoModelForCausalLM

    chosen: Any = preset_name_to_scheme(options["scheme"], ["Linear"])
    if options["group_size"] is not None:
        chosen.weights.group_size = options["group_size"]
    model = AutoModelForCausalLM.from_pretrained(request["model"], dtype=torch.bfloat16)
    oneshot(model=model, recipe=QuantizationModifier(config_groups={"group_0": chosen}, ignore=["lm_head"]))
    model.save_pretrained(str(out), save_compressed=True)


if __name__ == "__main__":
    make_all(make)

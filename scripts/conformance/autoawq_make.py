"""Makes AWQ checkpoints with the grid and the packer of AutoAWQ 0.2.9, rounded to nearest, without its search.

    python autoawq_make.py REQUEST.json

The request has `model` (a folder) and `made`: for each folder to write {"group_size": ...}. A failure leaves error.txt
in its folder, and the next one is begun.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conformance.foreign import make_all


def make(request: dict[str, Any], out: Path, options: dict[str, Any]) -> None:
    import torch
    from awq.modules.linear.gemm import WQLinear_GEMM
    from awq.quantize.quantizer import AwqQuantizer
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    folder, group_size = request["model"], options["group_size"]
    quantizer: Any = AwqQuantizer.__new__(AwqQuantizer)  # only its grid is wanted
    quantizer.w_bit, quantizer.group_size, quantizer.zero_point = 4, group_size, True
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float16)
    state = model.state_dict()
    for name, linear in model.named_modules():
        if not isinstance(linear, torch.nn.Linear) or name == "lm_head":
            continue
        linear.weight.data, scales, zeros = quantizer.pseudo_quantize_tensor(linear.weight.data)
        grid = {"scales": scales.t().contiguous(), "zeros": zeros.t().contiguous()}
        layer = WQLinear_GEMM.from_linear(linear, 4, group_size, **grid)
        del state[f"{name}.weight"]
        state |= {f"{name}.{suffix}": getattr(layer, suffix) for suffix in ("qweight", "qzeros", "scales")}
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    out.mkdir()
    save_file(
        {name: tensor.contiguous() for name, tensor in state.items()}, out / "model.safetensors", {"format": "pt"}
    )
    config = json.loads((Path(folder) / "config.json").read_text("utf-8")) | {"torch_dtype": "float16"}
    config["quantization_config"] = {
        "bits": 4,
        "group_size": group_size,
        "modules_to_not_convert": None,
        "quant_method": "awq",
        "version": "gemm",
        "zero_point": True,
    }
    (out / "config.json").write_text(json.dumps(config, indent=2), "utf-8")


if __name__ == "__main__":
    make_all(make)

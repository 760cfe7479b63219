"""Loads AWQ checkpoints into the layers of AutoAWQ 0.2.9.

    python autoawq_reader.py JOBS

AutoAWQ's own loader wants a GPU, or an extension that is no longer made, so its layers are put into a transformers
model here. They multiply in float16. Weights come from its own unpacking, on scales widened to float32.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from conformance.foreign import Loaded, run


def load(folder: Path) -> Loaded:
    import torch
    from awq.modules.linear.gemm import WQLinear_GEMM
    from awq.utils.packing_utils import dequantize_gemm
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForCausalLM

    written = json.loads((folder / "config.json").read_text("utf-8"))
    stated, rope = written["quantization_config"], written.get("rope_parameters") or {}
    config = AutoConfig.from_pretrained(folder)
    config.rope_theta = rope.get("rope_theta", config.rope_theta)  # where transformers 5 writes it, 4 does not look
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, torch_dtype=torch.float32).eval()
    state = {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}
    linears = [name.removesuffix(".qweight") for name in state if name.endswith(".qweight")]
    for name in linears:
        layer = WQLinear_GEMM.from_linear(
            model.get_submodule(name), stated["bits"], stated["group_size"], init_only=True
        )
        model.set_submodule(name, layer.eval())
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise RuntimeError(f"missing {missing}, unexpected {unexpected}")
    model.tie_weights()

    def weights() -> Iterator[tuple[str, np.ndarray]]:
        for name in linears:
            layer = model.get_submodule(name)
            wide = layer.scales.float()
            yield name, dequantize_gemm(layer.qweight, layer.qzeros, wide, layer.w_bit, layer.group_size).T.numpy()

    def logits(tokens: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            output = model(input_ids=torch.from_numpy(tokens)[None], use_cache=False)
        result: np.ndarray = output.logits[0].float().numpy()
        return result

    return Loaded("WQLinear_GEMM", weights(), logits)


if __name__ == "__main__":
    os.environ |= {"HF_HUB_OFFLINE": "1"}
    run(load, ("torch", "transformers", "autoawq"))

"""Loads GPTQ and AWQ checkpoints with transformers or with gptqmodel, on gptqmodel's torch kernels.

    python gptqmodel_reader.py transformers|gptqmodel JOBS

The GPTQ kernel multiplies in float32. gptqmodel itself loads in bfloat16, scales included, and is widened afterwards:
that is exact only for scales which are the same number in float16 and bfloat16. The AWQ kernel has no float32: it
multiplies in float16, and its weights are compared through its own unpacking, on scales widened to float32.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from conformance.foreign import Loaded, run

BACKENDS = {"gptq": "gptq_torch", "awq": "torch_awq"}


def method_of(folder: Path) -> tuple[str, int]:
    stated = json.loads((folder / "config.json").read_text("utf-8"))["quantization_config"]
    return stated["quant_method"], stated["bits"]


def through_transformers(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, AwqConfig, GPTQConfig

    method, bits = method_of(folder)
    kind = {"gptq": GPTQConfig, "awq": AwqConfig}[method]
    kernel = kind(bits=bits, backend=BACKENDS[method])  # everything else is taken from config.json
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, device_map="cpu", quantization_config=kernel
    )


def through_gptqmodel(folder: Path) -> Any:
    import torch
    from gptqmodel import GPTQModel

    backend = BACKENDS[method_of(folder)[0]]
    return GPTQModel.load(str(folder), backend=backend, device="cpu", dtype=torch.bfloat16).model


ROUTES = {"transformers": through_transformers, "gptqmodel": through_gptqmodel}


def dequantized(module: Any) -> Any:
    """The weight [out, in] of one of its linears, by its own code."""
    if hasattr(module, "dequantize_weight"):
        return module.dequantize_weight().T
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm

    return dequantize_gemm(module.qweight, module.qzeros, module.scales.float(), module.bits, module.group_size).T


def load(folder: Path) -> Loaded:
    import torch

    model = ROUTES[sys.argv[1]](folder)
    torch.nn.Module.float(model)  # float16 scales too, so that no product is rounded

    def weights() -> Iterator[tuple[str, np.ndarray]]:
        for name, module in model.named_modules():
            if hasattr(module, "qweight"):
                yield name, dequantized(module).numpy()

    def logits(tokens: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            result: np.ndarray = model(input_ids=torch.from_numpy(tokens)[None], use_cache=False).logits[0].numpy()
            return result

    kernels = {type(module).__name__ for module in model.modules() if hasattr(module, "qweight")}
    return Loaded(", ".join(sorted(kernels)), weights(), logits)


if __name__ == "__main__":
    workers = str(max(2, (os.cpu_count() or 1) // 2))  # it cannot load with the one that it takes on two cores
    os.environ |= {"GPTQMODEL_CPU_WORKERS": workers, "TORCHDYNAMO_DISABLE": "1", "HF_HUB_OFFLINE": "1"}
    run(load, ("torch", "transformers", "optimum", "gptqmodel"))

"""Loads compressed-tensors checkpoints with transformers and the compressed-tensors package.

    python compressed_tensors_reader.py transformers|float32 JOBS

transformers  dequantizes while it loads, as it does for its users: codes times scales in the dtype of the scales, so
              that its weights are rounded to bfloat16 or float16. They are not compared
float32       the package's own decompress on scales widened to float32, linear by linear, so that nothing is rounded;
              the model then runs on these weights
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from foreign import Loaded, run

ROUNDED = "transformers dequantizes in the dtype of the scales"


def through_transformers(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, device_map="cpu", quantization_config=CompressedTensorsConfig(dequantize=True)
    )


def decompressed(folder: Path, config: Any) -> Iterator[tuple[str, Any]]:
    """The weight of every quantized linear in float32, by the package's own code."""
    import torch
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM

    stated = dict(config.quantization_config)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)
    apply_quantization_config(skeleton, QuantizationConfig.model_validate(stated))
    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(path, "pt")) for path in sorted(folder.glob("*.safetensors"))]
        stored = {name: file for file in files for name in file.keys()}  # noqa: SIM118
        for name, module in skeleton.named_modules():
            scheme = getattr(module, "quantization_scheme", None)
            if scheme is None:
                continue
            mine = [key for key in stored if key.rpartition(".")[0] == name]
            state = {key.rpartition(".")[2]: stored[key].get_tensor(key) for key in mine}
            state["weight_scale"] = state["weight_scale"].float()
            compressor = BaseCompressor.get_value_from_registry(scheme.format or stated["format"])
            yield name, compressor.decompress(state, scheme)["weight"]


def load(folder: Path) -> Loaded:
    import torch
    from transformers import AutoConfig

    model = through_transformers(folder)
    exact = dict(decompressed(folder, AutoConfig.from_pretrained(folder))) if sys.argv[1] == "float32" else {}
    for name, weight in exact.items():
        model.get_submodule(name).weight.data = weight

    def logits(tokens: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model(input_ids=torch.from_numpy(tokens)[None], use_cache=False).logits[0].float().numpy()

    kernel = "torch.nn.Linear, dequantized"
    weights = ((name, weight.numpy()) for name, weight in exact.items())
    return Loaded(kernel, weights, logits) if exact else Loaded(kernel, None, logits, note=ROUNDED)


if __name__ == "__main__":
    os.environ |= {"HF_HUB_OFFLINE": "1"}
    run(load, ("torch", "transformers", "compressed-tensors"))

"""Loads compressed-tensors checkpoints with transformers and the compressed-tensors package.

    python compressed_tensors_reader.py transformers|dequantized|float32 JOBS

transformers  as it loads for its users: linears stay packed, and are codes times scales in the dtype of the scales from
              the first pass on, so that their weights are rounded to 16 bits. They are not compared
dequantized   likewise, but asked to dequantize while it loads
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

from conformance.foreign import Loaded, run

ROUNDED = "transformers dequantizes in the dtype of the scales"


def through_transformers(folder: Path, dequantize: bool) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    asked = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if dequantize else {}
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map="cpu", **asked)


def with_weights(folder: Path, config: Any, weights: dict[str, Any]) -> Any:
    """The model in float32 with the weights of its quantized linears, everything else as it is stored."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    state = {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}
    kept = {name: tensor for name, tensor in state.items() if name.rpartition(".")[0] not in weights}
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    odd = model.load_state_dict(kept | {f"{name}.weight": weight for name, weight in weights.items()}, strict=False)
    absent = set(odd.missing_keys) - ({"lm_head.weight"} if config.tie_word_embeddings else set())
    if absent or odd.unexpected_keys:
        raise ValueError(f"missing {sorted(absent)}, unexpected {odd.unexpected_keys}")
    return model


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

    config, mode = AutoConfig.from_pretrained(folder), sys.argv[1]
    exact = dict(decompressed(folder, config)) if mode == "float32" else {}
    model = with_weights(folder, config, exact) if exact else through_transformers(folder, mode == "dequantized")

    def logits(tokens: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            output = model(input_ids=torch.from_numpy(tokens)[None], use_cache=False)
        result: np.ndarray = output.logits[0].float().numpy()
        return result

    kernel = "torch.nn.Linear, dequantized"
    weights = ((name, weight.numpy()) for name, weight in exact.items())
    return Loaded(kernel, weights, logits) if exact else Loaded(kernel, None, logits, note=ROUNDED)


if __name__ == "__main__":
    os.environ |= {"HF_HUB_OFFLINE": "1"}
    run(load, ("torch", "transformers", "compressed-tensors"))

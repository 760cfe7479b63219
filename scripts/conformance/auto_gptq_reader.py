"""Loads GPTQ checkpoints with auto-gptq 0.7.1, on its torch kernel, in float32.

    python auto_gptq_reader.py JOBS

It came before Qwen3: of an architecture that its transformers does not know, each linear is loaded into its layer and
nothing else is asked. A weight is what that layer makes of the identity matrix.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from conformance.foreign import Loaded, run

UNKNOWN = "the transformers of auto-gptq's time has no {}, so only its linears were loaded"


def identity_weight(layer: Any) -> np.ndarray:
    """What a layer multiplies by, float32 [out, in], without its bias."""
    import torch

    bias, layer.bias = layer.bias, None
    with torch.inference_mode():
        weight = layer(torch.eye(layer.infeatures)).T.numpy()
    layer.bias = bias
    result: np.ndarray = weight
    return result


def whole_model(folder: Path) -> Any:
    import torch
    from auto_gptq import AutoGPTQForCausalLM

    model = AutoGPTQForCausalLM.from_quantized(
        str(folder),
        device="cpu",
        torch_dtype=torch.float32,
        disable_exllama=True,
        disable_exllamav2=True,
    ).model
    if model.config.tie_word_embeddings:
        restore_embedding(model, folder)
    return torch.nn.Module.float(model)  # float16 scales too, so that no product is rounded


def restore_embedding(model: Any, folder: Path) -> None:
    """A tied embedding of which the file has no second copy is lost: it is tied to a head that was not read."""
    from safetensors import safe_open

    name = "model.embed_tokens"
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            if f"{name}.weight" in file.keys():  # noqa: SIM118
                model.get_submodule(name).weight.data.copy_(file.get_tensor(f"{name}.weight"))


def single_layers(folder: Path, stated: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Each quantized linear in a layer of its own."""
    from auto_gptq.utils.import_utils import dynamically_import_QuantLinear
    from safetensors import safe_open

    kind = dynamically_import_QuantLinear(
        use_triton=False,
        desc_act=stated["desc_act"],
        group_size=stated["group_size"],
        bits=stated["bits"],
        disable_exllama=True,
        disable_exllamav2=True,
    )
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118
                name, _, suffix = key.rpartition(".")
                if suffix != "qweight":
                    continue
                state = {part: file.get_tensor(f"{name}.{part}") for part in ("qweight", "qzeros", "scales", "g_idx")}
                columns, rows = len(state["g_idx"]), state["qweight"].shape[1]
                layer = kind(stated["bits"], stated["group_size"], columns, rows, bias=False)
                layer.load_state_dict(state)
                yield name, layer.float()


def load(folder: Path) -> Loaded:
    import torch
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    config = json.loads((folder / "config.json").read_text("utf-8"))
    if config["model_type"] not in CONFIG_MAPPING_NAMES:
        layers: Any = single_layers(folder, config["quantization_config"])
        weights = ((name, identity_weight(layer)) for name, layer in layers)
        return Loaded("QuantLinear", weights, note=UNKNOWN.format(config["model_type"]))
    model = whole_model(folder)
    linears = [(name, module) for name, module in model.named_modules() if hasattr(module, "qweight")]

    def logits(tokens: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            result: np.ndarray = model(input_ids=torch.from_numpy(tokens)[None], use_cache=False).logits[0].numpy()
            return result

    kernels = {f"{type(module).__module__.rpartition('.')[2]}.{type(module).__name__}" for _, module in linears}
    return Loaded(", ".join(sorted(kernels)), ((name, identity_weight(module)) for name, module in linears), logits)


if __name__ == "__main__":
    os.environ |= {"HF_HUB_OFFLINE": "1"}
    run(load, ("torch", "transformers", "auto-gptq"))

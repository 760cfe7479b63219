"""Loads ONNX folders with optimum-onnx, whose ORTModelForCausalLM drives onnxruntime.

python optimum_reader.py JOBS
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from conformance.foreign import Loaded, run


def load(folder: Path) -> Loaded:
    import onnxruntime
    import torch
    from optimum.onnxruntime import ORTModelForCausalLM

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # it turns standard operators into ones that multiply in 8 bits, unless it is told otherwise
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    model = ORTModelForCausalLM.from_pretrained(folder, session_options=options, use_cache=True)

    def logits(tokens: np.ndarray) -> np.ndarray:
        given = torch.from_numpy(tokens)[None]
        result: np.ndarray = model(input_ids=given, attention_mask=torch.ones_like(given)).logits[0].float().numpy()
        return result

    def generate(prompt: np.ndarray, count: int) -> list[int]:
        given = torch.from_numpy(prompt)[None]
        made = model.generate(
            input_ids=given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=count
        )
        result: list[int] = made[0, len(prompt) :].tolist()
        return result

    kernel = f"{type(model).__name__}, {', '.join(model.providers)}"
    return Loaded(kernel, None, logits, generate, note="its weights are those of onnxruntime")


if __name__ == "__main__":
    os.environ |= {"HF_HUB_OFFLINE": "1"}
    run(load, ("optimum-onnx", "optimum", "transformers", "onnxruntime", "torch"))

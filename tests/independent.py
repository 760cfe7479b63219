"""Perplexity and KL divergence computed the plain way: a whole transformers model, numpy in float64.

It shares nothing with r1quant's own scoring but the weights it is given.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers

from r1quant.arch import rope
from r1quant.engine.forward import TensorSource


def whole_model(weights: TensorSource) -> Any:
    """transformers' own model class with these weights, in float32."""
    config = rope.explicit({k: v for k, v in weights.config.items() if k != "quantization_config"})
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(**config), dtype=torch.float32
    ).eval()
    state = {name: weights.read(name).float() for name in weights.tensors}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    return model


def log_probs(weights: TensorSource, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """float64 [windows, seq_len - 1, vocabulary]"""
    with torch.no_grad():
        logits = whole_model(weights)(torch.from_numpy(tokens)).logits[:, :-1].double().numpy()
    shifted = logits - logits.max(-1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def summary(baseline: TensorSource, quantized: TensorSource, tokens: npt.NDArray[np.int64]) -> dict[str, float]:
    p, q = log_probs(baseline, tokens), log_probs(quantized, tokens)
    target = tokens[:, 1:, None]
    kl = (np.exp(p) * (p - q)).sum(-1)
    return {
        "baseline": float(np.exp(-np.take_along_axis(p, target, -1).mean())),
        "quantized": float(np.exp(-np.take_along_axis(q, target, -1).mean())),
        "kl": float(kl.mean()),
        "median": float(np.median(kl)),
        "top1": float((p.argmax(-1) == q.argmax(-1)).mean()),
    }

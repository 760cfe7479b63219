"""inspect: what a checkpoint is, from its headers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from r1quant.archs import architecture_of
from r1quant.planner import check_tensors, layer_count
from r1quant.sources import open_model
from r1quant.yarn import yarn


def inspect(model: str | Path) -> dict[str, Any]:
    """Reads headers only. Works on float and on quantized checkpoints."""
    checkpoint = open_model(model)
    arch = architecture_of(checkpoint.config)
    stated, layers = checkpoint.config.get("quantization_config"), layer_count(checkpoint)
    names = {f"{arch.layer_prefix(i)}{n}" for i in range(layers) for n in arch.layer.linears}
    shapes = arch.shapes(checkpoint.config)
    packed = {n.rpartition(".")[0] for n in checkpoint.tensors if n.endswith(".qweight")}
    linears = {n for n in names if f"{n}.weight" in checkpoint.tensors or n in packed}
    plain = [info for name, info in checkpoint.tensors.items() if name.rpartition(".")[0] not in packed]
    parameters = sum(math.prod(i.shape) for i in plain) + sum(math.prod(shapes[f"{n}.weight"]) for n in packed & names)
    dtypes: dict[str, int] = {}
    for info in checkpoint.tensors.values():
        dtypes[info.dtype] = dtypes.get(info.dtype, 0) + 1
    config = checkpoint.config
    stretched = yarn(config)
    return {
        "model": checkpoint.source,
        "architecture": arch.model_type,
        "parameters": parameters,
        "quantizable_parameters": sum(math.prod(shapes[f"{n}.weight"]) for n in linears),
        "linears": len(linears),
        "layers": layers,
        "tensors": len(checkpoint.tensors),
        "dtypes": dtypes,
        "bytes": sum(info.nbytes for info in checkpoint.tensors.values()),
        "files": len(checkpoint.files),
        "tied_embeddings": bool(config.get("tie_word_embeddings")),
        "vocabulary": config.get("vocab_size"),
        "max_positions": config.get("max_position_embeddings"),
        "rope_scaling": config.get("rope_scaling"),
        "yarn": None if stretched is None else stretched.as_dict(),
        "chat_template": b"chat_template" in checkpoint.carried.get("tokenizer_config.json", b"")
        or any(name.startswith("chat_template") for name in checkpoint.carried),
        "quantization": stated,
        "problems": [p.message for p in check_tensors(checkpoint, arch)] if stated is None else [],
    }

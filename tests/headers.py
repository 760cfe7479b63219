"""The headers of DeepSeek-R1-0528-Qwen3-8B without its weights: what plan, fit and inspect answer from."""

from __future__ import annotations

import json
from pathlib import Path

from synthetic_checkpoint import CONFIG, tensors, write_tokenizer

LAYERS = 36
NAME = "deepseek-ai/DeepSeek-R1-0528-Qwen3-8B"


def write_headers(parent: Path) -> Path:
    """The model's folder under its name on the Hub: config, tokenizer, and one safetensors file that is all hole."""
    folder = parent / NAME
    folder.mkdir(parents=True)
    config = CONFIG | {"num_hidden_layers": LAYERS, "max_window_layers": LAYERS}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    write_tokenizer(folder)
    header, end = {}, 0
    for spec in tensors(config):
        header[spec.name] = {"dtype": spec.dtype, "shape": spec.shape, "data_offsets": [end, end + spec.nbytes]}
        end += spec.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return folder

"""Loads GGUF files with llama.cpp.

    python llamacpp_reader.py JOBS

The quantized file generates with llama.cpp's own kernels, which round activations to 8 bits. For weights and logits
llama.cpp first writes every tensor as float32, by its own dequantization, and runs that file in float32: so what is
compared is what the file says, and not how its kernels round.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from conformance.foreign import Loaded, run

FLOATS = ("F32", "F16", "BF16")
NAMES = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
ALL_F32, F32, FLASH_OFF = 0, 0, 0  # of llama_ftype, ggml_type and llama_flash_attn_type
CONTEXT, BATCH = 1024, 256


def only(folder: Path) -> Path:
    """The model: the file itself, or the first one of the folder."""
    return folder if folder.is_file() else min(path for path in folder.glob("*.gguf") if "imatrix" not in path.name)


def widened(path: Path) -> Path:
    """The same model in float32, as llama.cpp dequantizes it."""
    from llama_cpp import llama_cpp as api

    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, True)
    settings = api.llama_model_quantize_default_params()
    settings.ftype, settings.allow_requantize = ALL_F32, True
    target = folder / "floats.gguf"
    if api.llama_model_quantize(os.fsencode(path), os.fsencode(target), ctypes.byref(settings)):
        raise RuntimeError(f"llama.cpp cannot dequantize {path}")
    return target


def weights(path: Path, floats: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Every quantized linear in Hugging Face's names and row order."""
    from gguf import GGUFReader

    reader = GGUFReader(path)
    quantized = {t.name for t in reader.tensors if t.name.startswith("blk.") and t.tensor_type.name not in FLOATS}
    arch = reader.fields["general.architecture"].contents()
    heads = {"attn_q": f"{arch}.attention.head_count", "attn_k": f"{arch}.attention.head_count_kv"}
    for tensor in GGUFReader(floats).tensors:
        if tensor.name in quantized:
            _, layer, stem, _ = tensor.name.split(".")
            values = np.asarray(tensor.data)
            if arch == "llama" and stem in heads:
                count = reader.fields[heads[stem]].contents()
                values = values.reshape(count, -1, 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
            yield f"model.layers.{layer}.{NAMES[stem]}", values


class Model:
    """A file in llama.cpp's hands, on the CPU. Weights are not repacked: on AMX machines some builds crash then."""

    def __init__(self, path: Path, precise: bool) -> None:
        from llama_cpp import llama_cpp as api

        self.api = api
        model = api.llama_model_default_params()
        model.n_gpu_layers, model.use_extra_bufts = 0, False
        self.model = api.llama_model_load_from_file(os.fsencode(path), model)
        settings = api.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = CONTEXT, BATCH, BATCH
        settings.n_threads = settings.n_threads_batch = os.cpu_count() or 1
        if precise:
            settings.type_k = settings.type_v = F32
            settings.flash_attn_type = FLASH_OFF
        self.context = api.llama_init_from_model(self.model, settings) if self.model else None
        if not self.context:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        self.vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))
        self.batch: Any = api.llama_batch_init(BATCH, 0, 1)

    def feed(self, tokens: list[int], start: int) -> np.ndarray:
        """The logits after each of up to BATCH tokens, which are the tokens `start` and on of the text."""
        api, batch = self.api, self.batch
        if start == 0:
            api.llama_memory_clear(api.llama_get_memory(self.context), True)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i] = token, start + i
            batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, 0, 1
        if api.llama_decode(self.context, batch):
            raise RuntimeError("llama.cpp cannot run the tokens")
        return np.ctypeslib.as_array(api.llama_get_logits(self.context), (len(tokens), self.vocabulary)).copy()

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        listed = [int(token) for token in tokens]
        return np.concatenate([self.feed(listed[i : i + BATCH], i) for i in range(0, len(listed), BATCH)])

    def generate(self, prompt: np.ndarray, count: int) -> list[int]:
        found, position = [int(self.logits(prompt)[-1].argmax())], len(prompt)
        while len(found) < count:
            found.append(int(self.feed(found[-1:], position)[-1].argmax()))
            position += 1
        return found


def load(folder: Path) -> Loaded:
    path = only(folder)
    floats = widened(path)
    return Loaded(
        "ggml-cpu", weights(path, floats), Model(floats, precise=True).logits, Model(path, precise=False).generate
    )


if __name__ == "__main__":
    run(load, ("llama-cpp-python", "gguf"))

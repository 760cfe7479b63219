"""llama.cpp itself, through the bindings of llama-cpp-python: what it makes of a file. Skips if it is not installed."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@cache
def library() -> Any:
    llama_cpp = pytest.importorskip("llama_cpp")
    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    return llama_cpp, quiet


@contextmanager
def model(path: Path, vocabulary_only: bool = False) -> Iterator[tuple[Any, Any]]:
    llama_cpp, _ = library()
    params = llama_cpp.llama_model_default_params()
    params.vocab_only, params.n_gpu_layers = vocabulary_only, 0
    params.use_extra_bufts = False  # its AMX buffers crash on some machines
    loaded = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    assert loaded, f"llama.cpp does not load {path.name}"
    try:
        yield llama_cpp, loaded
    finally:
        llama_cpp.llama_model_free(loaded)


def tokenize(path: Path, texts: Sequence[str], special: bool = False) -> list[list[int]]:
    """Token ids of each text; special tokens in it are recognised, and with `special` put around it."""
    found = []
    with model(path, vocabulary_only=True) as (llama_cpp, loaded):
        vocabulary = llama_cpp.llama_model_get_vocab(loaded)
        for text in texts:
            raw = text.encode()
            buffer = (ctypes.c_int32 * (len(raw) + 8))()
            count = llama_cpp.llama_tokenize(vocabulary, raw, len(raw), buffer, len(buffer), special, True)
            found.append(list(buffer[:count]))
    return found


def logits(path: Path, ids: Sequence[int]) -> np.ndarray:
    """float32 [tokens, vocabulary], attention in float32."""
    with model(path) as (llama_cpp, loaded):
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = 512
        params.n_threads = params.n_threads_batch = 1
        params.flash_attn_type = params.type_k = params.type_v = 0
        context = llama_cpp.llama_init_from_model(loaded, params)
        size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(loaded))
        batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 1
            batch.seq_id[i][0] = 0
        batch.n_tokens = len(ids)
        assert llama_cpp.llama_decode(context, batch) == 0
        rows = [np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, i), (size,)) for i in range(len(ids))]
        found = np.stack(rows)
        llama_cpp.llama_batch_free(batch)
        llama_cpp.llama_free(context)
    return found

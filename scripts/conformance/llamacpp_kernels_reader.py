"""Runs GGUF files with llama.cpp's own quantized kernels, which round activations to 8 bits: logits only.

python llamacpp_kernels_reader.py JOBS
"""

from __future__ import annotations

from pathlib import Path

from conformance.foreign import Loaded, run
from conformance.llamacpp_reader import Model, only


def load(folder: Path) -> Loaded:
    note = "its weights are compared in float32, by another reader"
    return Loaded("ggml-cpu, activations in 8 bits", None, Model(only(folder), precise=False).logits, note=note)


if __name__ == "__main__":
    run(load, ("llama-cpp-python",))

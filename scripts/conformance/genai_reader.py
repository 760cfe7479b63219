"""Runs ONNX folders with onnxruntime-genai.

    python genai_reader.py JOBS

The logits of a text are taken from one call that is given all of it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from conformance.foreign import Loaded, run


def load(folder: Path) -> Loaded:
    import onnxruntime_genai as genai

    model = genai.Model(str(folder))

    def begin(count: int, greedy: bool) -> genai.Generator:
        parameters = genai.GeneratorParams(model)
        parameters.set_search_options(max_length=count, do_sample=not greedy)
        return genai.Generator(model, parameters)

    def logits(tokens: np.ndarray) -> np.ndarray:
        generator = begin(len(tokens) + 1, True)
        generator.append_tokens(tokens.astype(np.int32))
        result: np.ndarray = np.asarray(generator.get_output("logits"))[0].astype(np.float32)
        return result

    def generate(prompt: np.ndarray, count: int) -> list[int]:
        generator = begin(len(prompt) + count, True)
        generator.append_tokens(prompt.astype(np.int32))
        while not generator.is_done():
            generator.generate_next_token()
        return [int(token) for token in generator.get_sequence(0)[len(prompt) :]]

    return Loaded(model.device_type, None, logits, generate, note="its weights are those of onnxruntime")


if __name__ == "__main__":
    run(load, ("onnxruntime-genai", "onnxruntime"))

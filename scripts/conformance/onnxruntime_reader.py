"""Runs ONNX folders with plain onnxruntime.

python onnxruntime_reader.py JOBS
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from conformance.foreign import Loaded, run
from conformance.onnx_identity import FLOAT32_LEVEL, linears

DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def load(folder: Path) -> Loaded:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = os.cpu_count() or 1
    options.log_severity_level = 3
    # for standard operators: what it makes of them multiplies in 8 bits unless it is told otherwise
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", FLOAT32_LEVEL)
    path = folder / "model.onnx"
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    pasts = [value for value in session.get_inputs() if value.name.startswith("past_key_values.")]
    empty = {v.name: np.zeros((1, v.shape[1], 0, v.shape[3]), DTYPES[v.type]) for v in pasts}
    names = ["logits", *(value.name.replace("past_key_values", "present") for value in pasts)]

    def step(tokens: np.ndarray, total: int, past: dict[str, np.ndarray]) -> list[np.ndarray]:
        given = {"input_ids": tokens[None], "attention_mask": np.ones((1, total), np.int64)}
        result: list[np.ndarray] = session.run(names, given | past)
        return result

    def logits(tokens: np.ndarray) -> np.ndarray:
        result: np.ndarray = step(tokens, len(tokens), empty)[0][0].astype(np.float32)
        return result

    def generate(prompt: np.ndarray, count: int) -> list[int]:
        made: list[int] = []
        tokens, total, past = prompt, len(prompt), empty
        while len(made) < count:
            scores, *present = step(tokens, total, past)
            made.append(int(scores[0, -1].argmax()))
            past = dict(zip(empty, present, strict=True))
            tokens, total = np.array(made[-1:], np.int64), total + 1
        return made

    return Loaded("CPUExecutionProvider", linears(path), logits, generate)


if __name__ == "__main__":
    run(load, ("onnxruntime", "onnx"))

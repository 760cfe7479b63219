"""Runs an ONNX folder with onnxruntime: scores of a text, and greedy generation with a key-value cache.

It takes the inputs and outputs that onnxruntime-genai defines. It does not know how the graph was made.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from r1quant.errors import CheckpointError, MissingDependency, NumericError

INSTALL = "pip install 'r1quant[onnxruntime]'"
DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
QUIET = 3  # errors only


class OnnxRuntime:
    """One session on one folder (or its .onnx file)."""

    def __init__(self, model: Path, threads: int | None = None, accuracy_level: int | None = None) -> None:
        """
        threads         by default as many as this process may use
        accuracy_level  for models in standard operators; by default what the model's options say

        Raises MissingDependency where onnxruntime is not installed, CheckpointError where it cannot load the model.
        """
        try:
            import onnxruntime
        except ImportError:
            raise MissingDependency("onnxruntime is not installed", INSTALL) from None
        path = model / "model.onnx" if model.is_dir() else model
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or _processors()
        options.log_severity_level = QUIET
        level = _level(path) if accuracy_level is None else accuracy_level
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", str(level))
        try:
            self._session: Any = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own exceptions have no common base
            reason = str(error).strip().splitlines()[0][:300]
            raise CheckpointError(f"onnxruntime cannot load {path}: {reason}", "export the model again") from None
        inputs = {value.name: value for value in self._session.get_inputs()}
        self._past = [name for name in inputs if name.startswith("past_key_values.")]
        if not {"input_ids", "attention_mask"} <= set(inputs) or not self._past:
            raise CheckpointError(f"{path} is not a decoder with a key-value cache", "name a folder made by r1quant")
        first = inputs[self._past[0]]
        self._dtype = DTYPES[first.type]
        self._empty = np.zeros((1, first.shape[1], 0, first.shape[3]), self._dtype)
        names = [value.name for value in self._session.get_outputs()]
        self._outputs = ["logits", *(name.replace("past_key_values", "present") for name in self._past)]
        if not set(self._outputs) <= set(names):
            raise CheckpointError(f"{path} does not give back its key-value cache", "name a folder made by r1quant")

    def logits(self, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """tokens int64 [n] -> float32 [n, vocabulary]. Raises NumericError where a number is not finite."""
        scores = self._session.run(["logits"], self._feed(tokens, len(tokens)) | self._nothing())[0][0]
        if not bool(np.isfinite(scores).all()):
            raise NumericError("the ONNX model gives NaN or Inf on this text", "export it with dtype float32")
        return np.asarray(scores, np.float32)

    def generate(self, tokens: npt.NDArray[np.int64], count: int) -> list[int]:
        """The `count` tokens that follow tokens int64 [n], each the most probable one. It does not stop at the end."""
        made: list[int] = []
        given, total, past = tokens, len(tokens), self._nothing()
        while len(made) < count:
            scores, *present = self._session.run(self._outputs, self._feed(given, total) | past)
            made.append(int(scores[0, -1].argmax()))
            past = dict(zip(self._past, present, strict=True))
            given, total = np.array(made[-1:], np.int64), total + 1
        return made

    def _feed(self, tokens: npt.NDArray[np.int64], total: int) -> dict[str, Any]:
        return {"input_ids": tokens[None].astype(np.int64), "attention_mask": np.ones((1, total), np.int64)}

    def _nothing(self) -> dict[str, Any]:
        return dict.fromkeys(self._past, self._empty)


def _processors() -> int:
    """How many this process may use, where the system says so."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def _level(path: Path) -> int:
    """The accuracy level that the folder asks for, 4 where it says nothing: onnxruntime's own default."""
    try:
        config = json.loads((path.parent / "genai_config.json").read_text("utf-8"))
        return int(config["model"]["decoder"]["session_options"]["session.qdq_matmulnbits_accuracy_level"])
    except (OSError, ValueError, KeyError, TypeError):
        return 4

"""Runs an ONNX folder with onnxruntime: logits of a text, and what follows it, with a key-value cache.

It takes the inputs and outputs that onnxruntime-genai defines. It does not know how the graph was made.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from r1quant.backends import Completion, Prompt, Sampling
from r1quant.errors import CheckpointError, NumericError
from r1quant.extras import missing
from r1quant.storage.provenance import processors

DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
QUIET = 3  # errors only
TOKENS_PER_CALL = 256
STEP = 256  # buffers of keys and values grow by multiples of so many positions
ANY_LENGTH = 1 << 31  # the context of a folder that does not state it


class OnnxRuntime:
    """One session on one folder (or its .onnx file)."""

    def __init__(self, model: Path, threads: int | None = None, accuracy_level: int | None = None) -> None:
        """
        threads         by default as many as this process may use
        accuracy_level  for models in standard operators; by default what the model's options say

        Raises MissingDependency if onnxruntime is not installed, CheckpointError if it cannot load the model.
        """
        try:
            import onnxruntime
        except ImportError:
            raise missing("onnxruntime") from None
        path = model / "model.onnx" if model.is_dir() else model
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or processors()
        options.log_severity_level = QUIET
        config = _config(path)
        level = _level(config) if accuracy_level is None else accuracy_level
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
        self.vocabulary = next(int(v.shape[-1]) for v in self._session.get_outputs() if v.name == "logits")
        self.context = _number(config, ANY_LENGTH, "model", "context_length")
        self._shared = _found(config, "search", "past_present_share_buffer") is True

    @property
    def name(self) -> str:
        return "onnxruntime"

    def logits(self, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """tokens int64 [n] -> float32 [n, vocabulary]. Raises NumericError if a number is not finite."""
        scores = self._session.run(["logits"], self._feed(tokens, len(tokens)) | self._nothing())[0][0]
        if not bool(np.isfinite(scores).all()):
            raise NumericError("the ONNX model gives NaN or Inf on this text", "export it with dtype float32")
        return np.asarray(scores, np.float32)

    def complete(self, prompts: Iterable[Prompt], sampling: Sampling, stop: frozenset[int]) -> Iterator[Completion]:
        """One after the other. A prompt that is longer than the model's context gets no token.

        Raises RecipeError for tokens that the model does not have, NumericError if it gives NaN or Inf.
        """
        from r1quant.backends.sampling import complete, room

        for prompt in prompts:
            most = room(prompt, sampling, self.context, self.vocabulary)
            text = _Text(self)
            yield complete(text.begin, text.step, prompt, sampling, stop, most)

    def generate(self, tokens: npt.NDArray[np.int64] | Sequence[int], count: int) -> list[int]:
        """The `count` tokens that follow, each the likeliest. It does not stop at the end."""
        from r1quant.backends.sampling import follow

        text = _Text(self)
        return list(islice(follow(text.begin, text.step, tokens), count))

    def _feed(self, tokens: npt.NDArray[np.int64], total: int) -> dict[str, Any]:
        return {"input_ids": tokens[None].astype(np.int64), "attention_mask": np.ones((1, total), np.int64)}

    def _nothing(self) -> dict[str, Any]:
        return dict.fromkeys(self._past, self._empty)


class _Text:
    """One text in a session, with its keys and values.

    If the graph allows it they are written in place, into buffers longer than the text; else onnxruntime copies
    them at each step.
    """

    def __init__(self, model: OnnxRuntime) -> None:
        from onnxruntime import OrtValue

        self._model, self._value = model, OrtValue.ortvalue_from_numpy  # which shares the array's memory
        self._length = 0
        self._kept: dict[str, Any] = {name: self._value(array) for name, array in model._nothing().items()}

    def begin(self, tokens: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.floating]:
        """Logits [vocabulary] of what follows the text."""
        given = np.asarray(tokens, np.int64)
        for start in range(0, len(given), TOKENS_PER_CALL):
            logits = self._run(given[start : start + TOKENS_PER_CALL])
        return logits

    def step(self, token: int) -> npt.NDArray[np.floating]:
        return self._run(np.array([token], np.int64))

    def _run(self, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.floating]:
        self._length += len(tokens)
        feed = {name: self._value(array) for name, array in self._model._feed(tokens, self._length).items()}
        logits = self._in_place(feed, len(tokens)) if self._model._shared else self._copying(feed)
        found: npt.NDArray[np.floating] = logits.numpy()[0, -1]
        return found

    def _copying(self, feed: Mapping[str, Any]) -> Any:
        session, model = self._model._session, self._model
        logits, *present = session.run_with_ort_values(model._outputs, {**feed, **self._kept})
        self._kept = dict(zip(model._past, present, strict=True))
        return logits

    def _in_place(self, feed: Mapping[str, Any], new: int) -> Any:
        self._make_room(self._length - new)
        binding = self._model._session.io_binding()
        for name, value in feed.items():
            binding.bind_ortvalue_input(name, value)
        binding.bind_output("logits")
        for name, output in zip(self._model._past, self._model._outputs[1:], strict=True):
            binding.bind_ortvalue_input(name, self._kept[name])
            binding.bind_ortvalue_output(output, self._kept[name])
        self._model._session.run_with_iobinding(binding)
        return binding.get_outputs()[0]

    def _make_room(self, written: int) -> None:
        """Longer buffers, if the text outgrows those there are; the first `written` positions are kept."""
        heads, capacity, columns = self._kept[self._model._past[0]].shape()[1:]
        if self._length <= capacity:
            return
        longer = -(-(self._length + self._length // 4) // STEP) * STEP
        for name, old in self._kept.items():
            new = np.zeros((1, heads, longer, columns), self._model._dtype)
            new[:, :, :written] = old.numpy()[:, :, :written]
            self._kept[name] = self._value(new)


def _config(path: Path) -> Any:
    """genai_config.json beside the graph, None if there is none that can be read."""
    try:
        return json.loads((path.parent / "genai_config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None


def _found(config: Any, *keys: str) -> Any:
    """What lies under these keys, None where there is nothing."""
    for key in keys:
        config = config.get(key) if isinstance(config, dict) else None
    return config


def _number(config: Any, default: int, *keys: str) -> int:
    try:
        return int(_found(config, *keys))
    except (ValueError, TypeError):
        return default


def _level(config: Any) -> int:
    """The accuracy level that the folder asks for, 4 if it says nothing: onnxruntime's own default."""
    keys = ("model", "decoder", "session_options", "session.qdq_matmulnbits_accuracy_level")
    return _number(config, 4, *keys)

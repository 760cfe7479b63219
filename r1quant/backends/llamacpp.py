"""Runs a GGUF file with llama.cpp, in this process and on the CPU: logits of a text, and what follows it.

llama.cpp rounds activations to 8 bits before it multiplies them with quantized weights, so its logits differ a little
from those that the same weights give in floating point. It does not know how GGUF files are made.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from r1quant.backends import Completion, Prompt, Sampling
from r1quant.errors import CheckpointError, RecipeError
from r1quant.extras import missing
from r1quant.storage.provenance import processors

TOKENS_PER_CALL = 256
F32, FLASH_OFF, CPU = 0, 0, 0  # of ggml_type, llama_flash_attn_type and ggml_backend_dev_type
WARNING, ERROR = 3, 4  # of ggml_log_level
LOG_LINES = 30


@dataclass(frozen=True, eq=False)
class Library:
    """llama.cpp's functions, and the last of its warnings and errors, which it does not print.

    extra_buffers  whether weights may be repacked for faster kernels
    callback       held here because llama.cpp keeps only its address
    """

    api: Any
    log: deque[tuple[int, str]]
    callback: Any
    extra_buffers: bool

    @property
    def reason(self) -> str:
        """What llama.cpp last complained about, on one line."""
        worst = max((level for level, _ in self.log), default=ERROR)
        texts = [text.strip() for level, text in self.log if level == worst]
        return next(filter(None, texts), "it gave no reason").splitlines()[0][:300]


@cache
def library() -> Library:
    """Loads llama.cpp once and silences it. Raises MissingDependency if it is absent or cannot be loaded."""
    try:
        from llama_cpp import _ggml
        from llama_cpp import llama_cpp as api
    except ImportError:
        raise missing("llamacpp") from None
    except (OSError, RuntimeError) as error:
        raise missing("llamacpp", f"llama.cpp cannot be loaded: {str(error).splitlines()[0]}") from None
    log: deque[tuple[int, str]] = deque(maxlen=LOG_LINES)

    def keep(level: int, text: bytes, _: object) -> None:
        if level in (WARNING, ERROR):
            log.append((level, text.decode("utf-8", "replace")))

    callback = api.llama_log_callback(keep)
    api.llama_log_set(callback, None)
    api.llama_backend_init()
    return Library(api, log, callback, _without_amx(_ggml.libggml))


def _without_amx(ggml: Any) -> bool:
    """Takes AMX out of llama.cpp's list of repacking buffers. False if that cannot be done.

    Built with GCC 12, llama.cpp crashes on AMX machines at the first quantized product of several tokens: the
    compiler drops the stores that fill the tile configuration. Without the AMX buffer it takes the next in the list,
    which repacks for AVX. To go without any of them costs nearly half the speed of a prompt.
    """
    pointer, text = ctypes.c_void_p, ctypes.c_char_p

    def function(name: str, result: Any, *arguments: Any) -> Any:
        found = getattr(ggml, name)
        found.restype, found.argtypes = result, list(arguments)
        return found

    try:
        device = function("ggml_backend_dev_by_type", pointer, ctypes.c_int)(CPU)
        registry = function("ggml_backend_dev_backend_reg", pointer, pointer)(device)
        lookup = function("ggml_backend_reg_get_proc_address", pointer, pointer, text)
        name_of = function("ggml_backend_buft_name", text, pointer)
    except AttributeError:
        return False
    address = lookup(registry, b"ggml_backend_dev_get_extra_bufts")
    if not address:
        return True  # there are none
    buffers = ctypes.CFUNCTYPE(ctypes.POINTER(pointer), pointer)(address)(device)
    every: list[int | None] = []
    while buffers[len(every)]:
        every.append(buffers[len(every)])
    kept = [buffer for buffer in every if name_of(buffer) != b"AMX"]
    for index, buffer in enumerate((*kept, None)):
        buffers[index] = buffer
    return True


class LlamaCpp:
    """A model in llama.cpp's hands; close it, or use it in a with block.

    path     a GGUF file
    context  the most tokens that a text may have, prompt and answer together
    threads  as many as this process may use if it is None
    precise  attention in float32 throughout; llama.cpp's default keeps keys and values in float16

    Raises MissingDependency without llama.cpp, CheckpointError if it cannot load the file.
    """

    def __init__(self, path: Path, context: int, threads: int | None = None, precise: bool = False) -> None:
        self._library = library()
        self._api = self._library.api
        self._owned = ExitStack()
        self._finalizer = weakref.finalize(self, self._owned.close)  # for those who never close it
        self.path, self.context, self.vocabulary, self._text, self._position = path, context, 0, 0, 0
        if not path.is_file():
            raise CheckpointError(f"{path} is not a file", "name a GGUF file")
        try:
            self._load(threads or processors(), precise)
        except BaseException:
            self.close()
            raise

    def _load(self, threads: int, precise: bool) -> None:
        api = self._api
        self._library.log.clear()
        model = api.llama_model_default_params()
        model.n_gpu_layers = 0
        model.use_extra_bufts = self._library.extra_buffers
        self._model = api.llama_model_load_from_file(os.fsencode(self.path), model)
        if not self._model:
            raise self._failed("cannot load")
        self._owned.callback(api.llama_model_free, self._model)
        settings = api.llama_context_default_params()
        settings.n_ctx = self.context
        settings.n_batch = settings.n_ubatch = TOKENS_PER_CALL
        settings.n_threads = settings.n_threads_batch = threads
        if precise:
            settings.type_k = settings.type_v = F32
            settings.flash_attn_type = FLASH_OFF
        self._context = api.llama_init_from_model(self._model, settings)
        if not self._context:
            raise self._failed("has no room for the context of")
        self._owned.callback(api.llama_free, self._context)
        self.vocabulary = int(api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model)))
        self._batch = api.llama_batch_init(TOKENS_PER_CALL, 0, 1)
        self._owned.callback(api.llama_batch_free, self._batch)

    @property
    def name(self) -> str:
        return "llamacpp"

    def logits(self, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """tokens [n] -> [n, vocabulary], the logits that follow each token.

        Raises RecipeError if the tokens do not fit the context or the vocabulary.
        """
        listed = self._checked(tokens)
        out = np.empty((len(listed), self.vocabulary), np.float32)
        self._forget()
        for start in range(0, len(listed), TOKENS_PER_CALL):
            part = listed[start : start + TOKENS_PER_CALL]
            self._decode(part, start, every=True)
            found = self._api.llama_get_logits(self._context)
            out[start : start + len(part)] = np.ctypeslib.as_array(found, (len(part), self.vocabulary))
        return out

    def stream(self, tokens: npt.NDArray[np.int64] | Sequence[int]) -> Iterator[int]:
        """The most likely next tokens, one after the other, until the context is full or the next text is begun.

        Raises as `logits`.
        """
        from r1quant.backends.sampling import follow

        most = self.context - len(self._checked(tokens)) + 1
        for token in islice(follow(self._begin, self._step, tokens), most):
            text = self._text
            yield token
            if text != self._text:
                return

    def generate(self, tokens: npt.NDArray[np.int64] | Sequence[int], count: int) -> list[int]:
        """The `count` most likely next tokens, fewer if the context is full. Raises as `logits`."""
        return list(islice(self.stream(tokens), count))

    def complete(self, prompts: Iterable[Prompt], sampling: Sampling, stop: frozenset[int]) -> Iterator[Completion]:
        """One after the other. A prompt that is longer than the context gets no token.

        Raises RecipeError for tokens that the model does not have, NumericError if it gives NaN or Inf.
        """
        from r1quant.backends.sampling import complete, room

        for prompt in prompts:
            most = room(prompt, sampling, self.context, self.vocabulary)
            yield complete(self._begin, self._step, prompt, sampling, stop, most)

    def _begin(self, tokens: npt.NDArray[np.int64] | Sequence[int]) -> npt.NDArray[np.float32]:
        """A text instead of the one before -> float32 [vocabulary], what follows it."""
        listed = self._checked(tokens)
        self._forget()
        for start in range(0, len(listed), TOKENS_PER_CALL):
            self._decode(listed[start : start + TOKENS_PER_CALL], start)
        self._position = len(listed)
        return self._last()

    def _step(self, token: int) -> npt.NDArray[np.float32]:
        """One token more -> float32 [vocabulary], what follows; llama.cpp writes there again at the next step."""
        self._decode([token], self._position)
        self._position += 1
        return self._last()

    def _last(self) -> npt.NDArray[np.float32]:
        found: npt.NDArray[np.float32] = np.ctypeslib.as_array(
            self._api.llama_get_logits_ith(self._context, -1), (self.vocabulary,)
        )
        return found

    def _checked(self, tokens: npt.NDArray[np.int64] | Sequence[int]) -> list[int]:
        if not self._finalizer.alive:
            raise ValueError(f"{self.path.name} is closed")
        listed = [int(token) for token in tokens]
        if not 0 < len(listed) <= self.context:
            raise RecipeError(
                f"{len(listed)} tokens do not fit a context of {self.context}", "give between one and that many"
            )
        if not 0 <= min(listed) <= max(listed) < self.vocabulary:
            raise RecipeError(
                f"the tokens {min(listed)} .. {max(listed)} are not all in the vocabulary of {self.path.name}",
                f"use the tokenizer of the model itself: it knows {self.vocabulary}",
            )
        return listed

    def _forget(self) -> None:
        """Makes room for a text, which gets a number."""
        self._text += 1
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)

    def _decode(self, tokens: list[int], position: int, every: bool = False) -> None:
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i] = token, position + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = every or i == len(tokens) - 1
        self._library.log.clear()
        if self._api.llama_decode(self._context, batch):
            raise self._failed("cannot run")

    def _failed(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"llama.cpp {what} {self.path.name}: {self._library.reason}",
            "check that the file is complete, that memory suffices, and that llama-cpp-python is current",
        )

    def close(self) -> None:
        self._text += 1
        self._finalizer()

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

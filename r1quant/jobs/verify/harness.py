"""Answers the three questions of lm-eval with a runtime: how likely a continuation is, how likely a text, what follows.

Runtimes stop at tokens, tasks at strings: an answer is made in pieces of growing length, and looked at after each. It
does not know tasks, and of lm-eval only the shape of its requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import numpy.typing as npt

from r1quant.backends import Prompt, Runtime, Sampling
from r1quant.checkpoint.tokenizer import Message, Tokenizer
from r1quant.core.json import JsonObject
from r1quant.errors import CheckpointError, RecipeError
from r1quant.jobs.setup import SERVER

Logits = npt.NDArray[np.float32]
TOKENS_PER_BATCH = 16384  # scored at a time
PIECE = 64  # tokens of the first piece; each further one is twice as long
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # lm-eval's names, first one first
DEFAULT_LENGTH = 256  # lm-eval's own
KNOWN = {*LENGTHS, "until", "do_sample", "temperature", "top_p"}


@dataclass(frozen=True)
class HarnessRequest:
    """A text to go on with, as a task asks for it."""

    context: str
    sampling: Sampling
    until: tuple[str, ...]


@dataclass
class _Answer:
    """An answer under way: the request, the tokens that were written so far, and whether that is all."""

    request: HarnessRequest
    key: str
    seed: int
    prompt: list[int]
    stop: frozenset[int]
    room: int
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    done: bool = False
    pieces: int = 0


class Harness:
    """A model that answers lm-eval.

    context     the most tokens of a text; longer ones lose their begin, and `truncated` counts them
    stop        tokens that end an answer
    max_tokens  of an answer, over what tasks say; None leaves it to them
    seed        of the draws of tasks that sample
    """

    def __init__(
        self,
        runtime: Runtime,
        tokenizer: Tokenizer,
        context: int,
        stop: frozenset[int],
        max_tokens: int | None = None,
        seed: int = 0,
    ) -> None:
        self._runtime, self._tokenizer, self._context, self._stop = runtime, tokenizer, context, stop
        self._max_tokens, self._seed = max_tokens, seed
        self.truncated, self.asked = 0, 0
        self.ignored: set[str] = set()

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """Of each (context, continuation): log-probability in nats, and whether every token of it is the likeliest."""
        encoded = [self._pair(context, continuation) for context, continuation in pairs]
        scores: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
        self.asked += len(pairs)
        by_text: dict[tuple[int, ...], list[int]] = {}
        for index, (tokens, count) in enumerate(encoded):
            if count:
                by_text.setdefault(tuple(tokens[:-1]), []).append(index)
        counts = {text: max(encoded[index][1] for index in indices) for text, indices in by_text.items()}
        for text, logits in self._logits(counts):
            for index in by_text[text]:
                tokens, count = encoded[index]
                scores[index] = _score(logits[-count:], tokens[-count:])
        return scores

    def loglikelihood_rolling(self, texts: Sequence[str]) -> list[float]:
        """The log-probability in nats of each whole text, in windows of the context; every token is predicted once."""
        self.asked += len(texts)
        return [self._rolling([self._prefix(), *self._tokenizer.encode(text)]) for text in texts]

    def generate(self, requests: Sequence[tuple[str, JsonObject]]) -> list[str]:
        """What follows each context, up to the first of its stop strings. The settings are those of lm-eval's tasks."""
        self.asked += len(requests)
        answers = [self._begun(self.request(*request), index) for index, request in enumerate(requests)]
        piece = PIECE
        while pending := [answer for answer in answers if not answer.done]:
            self._extend(pending, piece)
            piece *= 2
        return [answer.text for answer in answers]

    def request(self, context: str, settings: JsonObject) -> HarnessRequest:
        """A request with lm-eval's settings read; those that no runtime has are noted in `ignored`."""
        self.ignored |= {key for key in settings if key not in KNOWN}
        length = next((settings[key] for key in LENGTHS if settings.get(key) is not None), DEFAULT_LENGTH)
        until = settings.get("until") or []
        strings = tuple(filter(None, [until] if isinstance(until, str) else until))
        temperature = settings.get("temperature")
        draws = settings.get("do_sample", bool(temperature))
        if not draws:
            sampling = Sampling(0.0, 1.0, self._max_tokens or int(length))
        else:
            top_p = settings.get("top_p")
            sampling = Sampling(
                1.0 if temperature is None else float(temperature),
                1.0 if top_p is None else float(top_p),
                self._max_tokens or int(length),
            )
        return HarnessRequest(context, sampling, strings)

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """Messages in the model's chat format; without a generation prompt, the last one is left open to go on with."""
        if add_generation_prompt or not messages:
            return self._tokenizer.render(messages, add_generation_prompt=True)
        return self._tokenizer.render(messages[:-1], add_generation_prompt=True) + str(messages[-1]["content"])

    def _prefix(self) -> int:
        """What a text without context follows."""
        prefix = self._tokenizer.bos_id if self._tokenizer.bos_id is not None else self._tokenizer.eos_id
        if prefix is None:
            raise CheckpointError(
                f"{self._tokenizer.source} has neither a bos nor an eos token, which a text without context follows",
                "add them to tokenizer_config.json, or leave out the tasks that score such texts",
            )
        return prefix

    def _encode(self, text: str) -> list[int]:
        """With the special tokens that the tokenizer puts around a text, unless they are written out in it."""
        bos = self._tokenizer.specials.get("bos_token")
        return self._tokenizer.encode(text, special=not (bos and text.startswith(bos)))

    def _pair(self, context: str, continuation: str) -> tuple[list[int], int]:
        """The tokens of both, and how many of them are the continuation's. Blanks between them belong to the latter."""
        if not context:
            tokens = [self._prefix(), *self._tokenizer.encode(continuation)]
            count = len(tokens) - 1
        else:
            stripped = context.rstrip() or context
            tokens = self._encode(context + continuation)
            count = len(tokens) - len(self._encode(stripped))
        count = min(max(count, 0), len(tokens) - 1, self._context)
        if len(tokens) > self._context + 1:
            self.truncated += 1
            tokens = tokens[-self._context - 1 :]
        return tokens, count

    def _rolling(self, tokens: list[int]) -> float:
        last, targets = len(tokens) - 1, {}
        for start in range(0, last, self._context):
            end = min(start + self._context, last)
            targets[max(0, end - self._context)] = tokens[start + 1 : end + 1]
        windows = [tuple(tokens[begin : begin + min(self._context, last)]) for begin in targets]
        total = 0.0
        for window, new in zip(windows, targets.values(), strict=True):
            ((_, logits),) = self._logits({window: len(new)})
            total += _score(logits, new)[0]
        return total

    def _logits(self, counts: Mapping[tuple[int, ...], int]) -> Iterator[tuple[tuple[int, ...], Logits]]:
        """Of each text, the logits after its last `counts` tokens: float32 [count, vocabulary].

        torch reads its weights once for a whole batch; shorter texts are filled up on the right, which no token
        before it attends to.
        """
        import torch

        from r1quant.backends.torch import TorchModel

        if not isinstance(self._runtime, TorchModel):
            for text, count in counts.items():
                yield text, self._runtime.logits(np.array(text, np.int64))[-count:]
            return
        for batch in _batches(sorted(counts, key=len)):
            padded = np.zeros((len(batch), len(batch[-1])), np.int64)
            for row, text in enumerate(batch):
                padded[row, : len(text)] = text
            states = self._runtime.final_states(padded)
            needed = [states[row, len(text) - counts[text] : len(text)] for row, text in enumerate(batch)]
            pieces = (piece.cpu().numpy() for piece in self._runtime.projected(torch.cat(needed)).pieces())
            yield from zip(batch, _split(pieces, [counts[text] for text in batch]), strict=True)

    def _begun(self, request: HarnessRequest, index: int) -> _Answer:
        prompt = self._encode(request.context) or [self._prefix()]
        room = min(request.sampling.max_tokens, self._context - 1)
        if room < 1:
            raise RecipeError(f"a context of {self._context} tokens has no room for an answer", "raise the context")
        if len(prompt) > self._context - room:
            self.truncated += 1
            prompt = prompt[-(self._context - room) :]
        tokens = {self._tokenizer.backend.token_to_id(text) for text in request.until}
        stop = self._stop | {int(token) for token in tokens if token is not None}
        return _Answer(request, str(index), self._seed + index, prompt, stop, room)

    def _extend(self, answers: Sequence[_Answer], piece: int) -> None:
        """One more piece of each answer; those that are drawn alike go to the runtime together."""

        def alike(answer: _Answer) -> tuple[float, float, int, tuple[int, ...]]:
            sampling = answer.request.sampling
            room = answer.room - len(answer.tokens)
            asked = room if self._runtime.name == SERVER else min(piece, room)
            return sampling.temperature, sampling.top_p, asked, tuple(sorted(answer.stop))

        for (temperature, top_p, asked, stop), group in groupby(sorted(answers, key=alike), alike):
            named = {answer.key: answer for answer in group}
            prompts = [
                Prompt(
                    key=answer.key,
                    messages=({"role": "user", "content": answer.request.context},),
                    tokens=(*answer.prompt, *answer.tokens),
                    seed=answer.seed + 1_000_003 * answer.pieces,  # not the draws of the piece before again
                )
                for answer in named.values()
            ]
            for completion in self._runtime.complete(prompts, Sampling(temperature, top_p, asked), frozenset(stop)):
                answer = named[completion.key]
                answer.tokens += completion.ids
                answer.pieces += 1
                text = [token for token in answer.tokens if token not in answer.stop]
                whole = self._tokenizer.decode(text, skip_special=True) if answer.tokens else completion.text
                answer.text = cut(whole, answer.request.until)
                ended = completion.finished or completion.count < asked or len(answer.tokens) >= answer.room
                answer.done = ended or not completion.ids or answer.text != whole


def _batches(texts: Sequence[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
    """Texts, the shortest first, some at a time: as many as keep a filled-up batch within TOKENS_PER_BATCH."""
    batch: list[tuple[int, ...]] = []
    for text in texts:
        if batch and (len(batch) + 1) * len(text) > TOKENS_PER_BATCH:
            yield batch
            batch = []
        batch.append(text)
    if batch:
        yield batch


def _split(pieces: Iterable[Logits], counts: Sequence[int]) -> Iterator[Logits]:
    """Rows that come in pieces of any length, as runs of `counts` rows; no more is held than one of both."""
    source, held = iter(pieces), np.zeros((0, 0), np.float32)
    for count in counts:
        parts = [held] if len(held) else []
        while sum(map(len, parts)) < count:
            parts.append(next(source))
        joined = parts[0] if len(parts) == 1 else np.concatenate(parts)
        yield joined[:count]
        held = joined[count:]


def cut(text: str, until: Sequence[str]) -> str:
    """The text before the first of the stop strings."""
    return text[: min((at for stop in until if (at := text.find(stop)) >= 0), default=len(text))]


def _score(logits: Logits, tokens: Sequence[int]) -> tuple[float, bool]:
    """logits [n, vocabulary] and the n tokens they predict -> their log-probability, and whether all are likeliest."""
    wide, at = logits.astype(np.float64), np.asarray(tokens)
    peak = wide.max(1)
    chosen = wide[np.arange(len(at)), at]
    total = chosen - peak - np.log(np.exp(wide - peak[:, None]).sum(1))
    return float(total.sum()), bool((wide.argmax(1) == at).all())

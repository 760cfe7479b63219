"""Servers that speak OpenAI's protocol: vLLM, SGLang, llama-server, llama-cpp-python, hosted ones; one or several.

Chat requests leave the chat format to the server; raw ones send the rendered prompt, as token ids if the server
takes them. The log-probabilities of a text come back from a completion that echoes its prompt; a server is believed
only after its echo gave a token the same log-probability as its generation did. It does not know what answers mean.
"""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from r1quant.backends import Completion, Prompt, Sampling
from r1quant.backends.openai_client import NO_KEY, PLAIN, OpenAIClient, Refused, Reply, TooLong, Wire, complete
from r1quant.backends.pool import Pool, RetryLater
from r1quant.errors import RecipeError

SAME = 0.1  # nats: how far two log-probabilities of one token may be apart in bfloat16
IDS, TEXT, AFTER_BOS = "ids", "text", "after bos"
NO_ECHO = "use vLLM or SGLang (or llama-cpp-python with --logits_all true), or score with another --backend"


class OpenAI:
    """One model on one or several servers.

    base_urls    such as http://localhost:8000/v1; requests go to the least busy
    model        its name there; None is the first that the first server lists
    api_key      by default what OPENAI_API_KEY holds
    concurrency  requests under way at once, over all servers
    patience_s   how long to go on asking while no server answers
    request_s    without a piece of an answer, after which a request counts as failed; answers may take any time
    raw          send the rendered prompt instead of messages
    moments      whether completions say when each piece came
    text_of      token ids to text, for raw requests to servers that take no token ids (llama-cpp-python)
    bos          the token that some of those servers put before every text
    note         is told of servers that fail and of parameters that they refuse, from another thread

    Raises MissingDependency without the openai package, RecipeError without a URL.
    """

    def __init__(
        self,
        base_urls: Sequence[str],
        model: str | None = None,
        *,
        api_key: str | None = None,
        concurrency: int = 16,
        patience_s: float = 300.0,
        request_s: float = 600.0,
        raw: bool = False,
        moments: bool = False,
        text_of: Callable[[Sequence[int]], str] | None = None,
        bos: int | None = None,
        note: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._wire = Wire(api_key or os.environ.get("OPENAI_API_KEY") or NO_KEY, request_s, moments, note)
        self._urls = [complete(url) for url in base_urls]
        if not self._urls:
            raise RecipeError("no server is named", "give its address: --base-url http://localhost:8000/v1")
        if concurrency < 1:
            raise RecipeError(f"concurrency {concurrency} sends no request", "use 1 or more")
        self._model, self._raw, self._moments, self._text_of, self._bos = model, raw, moments, text_of, bos
        self._note = note
        self._pool: Pool[OpenAIClient] = Pool(concurrency, patience_s, note)
        self.retemplated = 0
        """How many prompts became another number of tokens with the server's chat template than with ours."""

    @property
    def name(self) -> str:
        return "openai"

    @property
    def model(self) -> str:
        """The model's name on the server, which may have to be asked. Raises as `complete`."""
        if self._model is None:
            (names,) = self._pool.each(self._connect, [self._wire.models])
            self._model = names[0]
        return self._model

    def logits(self, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Raises RecipeError: the protocol has no logits."""
        raise RecipeError(
            "a server does not give logits, only the log-probabilities of the tokens of a text",
            "measure its perplexity, or run the model here: --backend torch, onnxruntime or llamacpp",
        )

    def complete(self, prompts: Iterable[Prompt], sampling: Sampling, stop: frozenset[int]) -> Iterator[Completion]:
        """Completions as they end, as text; counts as the server counts, else of the pieces that came.

        The server stops at its model's own end of turn; `stop` is sent too, for servers that take it. An answer that
        does not fit the context any more is cut there; a prompt that alone does not fit gets no token.

        Raises RecipeError if a server refuses a request, CheckpointError if none answers for as long as
        patience lasts. What was yielded before is whole.
        """
        model = self.model

        def question(prompt: Prompt) -> Callable[[OpenAIClient], Awaitable[Completion]]:
            return lambda client: self._completion(client, prompt, self._arguments(model, prompt, sampling, stop))

        return self._pool.each(self._connect, map(question, prompts))

    def nll(self, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Negative log-probabilities in nats of the tokens that came.

        int64 [windows, seq_len] -> float64 [windows, seq_len - 1]. Complete with vLLM and SGLang. llama-cpp-python
        keeps the first value to itself, which is NaN then; its echo is right only for windows that begin with the
        model's BOS token, and slow for large vocabularies. Raises as `complete`, and RecipeError if a server has
        no log-probabilities of the prompt, or wrong ones.
        """
        windows, seq_len = tokens.shape
        out = np.full((windows, seq_len - 1), np.nan)
        model = self.model

        def question(index: int) -> Callable[[OpenAIClient], Awaitable[tuple[int, list[float]]]]:
            async def ask(client: OpenAIClient) -> tuple[int, list[float]]:
                return index, await self._scores(client, model, [int(token) for token in tokens[index]])

            return ask

        for index, values in self._pool.each(self._connect, map(question, range(windows))):
            out[index, seq_len - 1 - len(values) :] = values
        return -out

    def _connect(self) -> list[OpenAIClient]:
        return [self._wire.client(url) for url in self._urls]

    def _arguments(self, model: str, prompt: Prompt, sampling: Sampling, stop: frozenset[int]) -> dict[str, Any]:
        return {
            "model": model,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "seed": prompt.seed & 0x7FFFFFFF,
            "extra_body": PLAIN | ({"stop_token_ids": sorted(stop)} if stop else {}),
        }

    async def _completion(self, client: OpenAIClient, prompt: Prompt, arguments: dict[str, Any]) -> Completion:
        try:
            reply = await (self._raw_reply if self._raw else self._chat_reply)(client, prompt, arguments)
        except TooLong as long:
            self._note(f"{client.url} has no room for {prompt.key}: {long.reason}")
            return Completion(prompt.key, (), "", 0, False)
        count, moments = reply.new_tokens or len(reply.moments), reply.moments if self._moments else ()
        return Completion(prompt.key, (), reply.whole, count, reply.finished, moments)

    async def _chat_reply(self, client: OpenAIClient, prompt: Prompt, arguments: dict[str, Any]) -> Reply:
        messages, length = [dict(message) for message in prompt.messages], len(prompt.tokens)
        try:
            reply = await self._counted(client, {**arguments, "messages": messages}, length)
        except Refused as refused:
            if "chat template" not in refused.reason.lower() or not length:
                raise
            return await self._raw_reply(client, prompt, arguments)
        if length and reply.prompt_tokens not in (None, length):
            self.retemplated += 1
        return reply

    async def _raw_reply(self, client: OpenAIClient, prompt: Prompt, arguments: dict[str, Any]) -> Reply:
        tokens = list(prompt.tokens)
        form = await self._form(client, str(arguments["model"]), tokens)
        reply = await self._counted(client, {**arguments, "prompt": self._prompt(form, tokens)}, len(tokens))
        if reply.prompt_tokens not in (None, len(tokens)):
            raise _retokenized(client, reply.prompt_tokens, len(tokens))
        return reply

    async def _counted(self, client: OpenAIClient, arguments: dict[str, Any], length: int) -> Reply:
        """An answer with the number of its prompt's tokens.

        A server that streams without counting is asked for it with one token more, and after that for whole answers,
        which it counts; unless it is being timed.
        """
        reply = await self._wire.reply(client, arguments, length)
        if reply.prompt_tokens is None and client.counts and not self._moments:
            try:
                asked = await self._wire.reply(client, {**arguments, "max_tokens": 1}, length, stream=False)
            except (RetryLater, Refused):
                return reply
            client.counts = asked.prompt_tokens is not None
            if client.counts:
                client.refused.add("stream")
            reply = replace(reply, prompt_tokens=asked.prompt_tokens)
        return reply

    def _prompt(self, form: str, tokens: list[int]) -> str | list[int]:
        if form == IDS or self._text_of is None:
            return tokens
        return self._text_of(tokens[1:] if form == AFTER_BOS and tokens[0] == self._bos else tokens)

    async def _form(self, client: OpenAIClient, model: str, tokens: list[int]) -> str:
        """How the server takes a rendered prompt, found out with the first token of the first one."""
        async with client.lock:
            if not client.form:
                client.form = await self._probed(client, model, tokens[:1])
            return client.form

    async def _probed(self, client: OpenAIClient, model: str, first: list[int]) -> str:
        arguments = {"model": model, "max_tokens": 1, "temperature": 0.0}
        try:
            await self._wire.reply(client, {**arguments, "prompt": first}, 1, stream=False)
        except (Refused, RetryLater) as refused:
            if (
                isinstance(refused, RetryLater) and "valid string" not in refused.reason
            ):  # llama-cpp-python calls it a 500
                raise
            if self._text_of is None:
                raise RecipeError(
                    f"{client.url} takes no token ids: {refused.reason}", "send messages instead"
                ) from None
        else:
            return IDS
        if first != [self._bos]:
            return TEXT
        reply = await self._wire.reply(client, {**arguments, "prompt": self._text_of(first)}, 1, stream=False)
        return AFTER_BOS if reply.prompt_tokens == 2 else TEXT

    async def _scores(self, client: OpenAIClient, model: str, tokens: list[int]) -> list[float]:
        """The log-probabilities of the last tokens of a window: all but the first, or all but two."""
        form = await self._form(client, model, tokens)
        await self._believe(client, model, form, tokens)
        reply = await self._echo(client, model, form, tokens)
        if reply.prompt_tokens not in (None, len(tokens)):
            raise _retokenized(client, reply.prompt_tokens, len(tokens))
        listed = list(reply.scores or ())
        values = listed[: len(listed) - (reply.new_tokens or 0)][1:]
        given = [value for value in values if value is not None]
        if len(given) != len(values) or len(values) not in (len(tokens) - 1, len(tokens) - 2):
            raise RecipeError(f"{client.url} gives {len(given)} log-probabilities for {len(tokens)} tokens", NO_ECHO)
        return given

    async def _believe(self, client: OpenAIClient, model: str, form: str, tokens: list[int]) -> None:
        """Raises RecipeError unless the next token has the same log-probability with and without the prompt's echo.

        Tried once for each server, on three beginnings of the first window.
        """
        async with client.lock:
            compared = int(client.believed)
            for part in () if client.believed else (1, 2, 3):
                first = tokens[: max(2, len(tokens) // part)]
                echoed, made = [await self._echo(client, model, form, first, echo) for echo in (True, False)]
                if not (echoed.new_tokens and made.new_tokens and echoed.scores and made.scores):
                    continue  # the end of the text, which llama-cpp-python does not list
                one, other = echoed.scores[-1], made.scores[-1]
                if one is None or other is None or abs(one - other) > SAME:
                    raise RecipeError(
                        f"{client.url} gives log-probabilities of the prompt that belong to other tokens",
                        f"llama-cpp-python does so for texts that do not begin with BOS; {NO_ECHO}",
                    )
                compared += 1
            if not compared:
                raise RecipeError(f"{client.url} ends every text, so that its echo cannot be checked", NO_ECHO)
            client.believed = True

    async def _echo(self, client: OpenAIClient, model: str, form: str, tokens: list[int], echo: bool = True) -> Reply:
        prompt = self._prompt(form, tokens)
        arguments = {"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0.0, "logprobs": 1}
        try:
            reply = await self._wire.reply(client, {**arguments, "echo": echo}, len(tokens), stream=False)
        except (Refused, RetryLater) as refused:
            if not re.search("logprob|echo", refused.reason):
                raise
            raise RecipeError(f"{client.url} gives no log-probabilities: {refused.reason}", NO_ECHO) from None
        if reply.scores is None or (echo and len(reply.scores) < len(tokens) - 1):
            raise RecipeError(f"{client.url} gives no log-probabilities of the prompt", NO_ECHO)
        return reply


def _retokenized(client: OpenAIClient, found: int | None, wanted: int) -> RecipeError:
    return RecipeError(
        f"{client.url} makes {found} tokens of a prompt of {wanted}",
        "serve the same tokenizer, on a server that takes token ids (vLLM, SGLang, llama-server)",
    )

"""One request to a server that speaks OpenAI's protocol: sent, read whole or in pieces, its errors told apart.

Samplers that the protocol does not know (top-k, min-p, repetition penalties) are switched off by name: servers have
defaults of their own for them, which would make two runtimes incomparable. A server that refuses such a name is not
sent it again. It does not know which server is asked when, or what for.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from r1quant.backends.pool import RetryLater
from r1quant.core.thinking import CLOSING, OPENING
from r1quant.errors import CheckpointError, RecipeError
from r1quant.extras import missing

NO_KEY = "none"  # sent if there is none: the package wants some
CONNECT_S = 10.0
WHOLE_S = 86400.0  # for an answer that does not come in pieces
LATER = (408, 409, 425, 429)  # and every status from 500 on
EVERY = 1 << 20  # as top-k: more than any vocabulary; servers disagree on whether 0 or -1 means all
PLAIN = {"top_k": EVERY, "min_p": 0.0, "repeat_penalty": 1.0, "repetition_penalty": 1.0}
UNKNOWN = re.compile(r"unrecogni|unknown|unsupported|not supported|unexpected|extra|permitted|not allowed", re.I)
STREAMING = re.compile(r"\bstream(?:ing|_options)?\b", re.I)
CONTEXT = re.compile(r"context (?:length|window)[^.\d]*?(?:is only|is|of|:|\()\s*(\d+)", re.I)
TOO_LONG = re.compile(
    r"exceeds? the (?:available |model's )?context|longer than the (?:model's context|maximum model length)", re.I
)
GIVEN = re.compile(
    r"(\d+)(?: tokens)? (?:in the messages|in your prompt|in the prompt|input tokens|from the input)", re.I
)


class Refused(RecipeError):
    """A request that a server calls wrong, and its reason."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(
            f"{url} refuses the request: {reason}", "change what it complains about, or the server's flags"
        )
        self.reason = reason


class StreamCut(Exception):
    """A stream that ended without the answer's end. begun: whether anything came."""

    def __init__(self, begun: bool) -> None:
        super().__init__()
        self.begun = begun


class TooLong(Refused):
    """A prompt that the context has no room for."""


@dataclass(eq=False)
class OpenAIClient:
    """One server, and what was found out about it.

    form      how it takes a rendered prompt; empty while that is not known
    refused   the parameters that it does not know; `stream` and `stream_options` if it cannot
    believed  whether its echo agrees with its generation
    counts    whether it tells how many tokens a prompt has, as far as is known
    """

    url: str
    api: Any
    form: str = ""
    believed: bool = False
    counts: bool = True
    refused: set[str] = field(default_factory=set)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def close(self) -> None:
        await self.api.close()


@dataclass(frozen=True)
class Reply:
    """Counts are None if the server does not count, `scores` (log-probabilities) if none came.

    moments: seconds to each piece of the text that came; empty if it came as a whole
    """

    text: str
    reasoning: str
    finished: bool
    prompt_tokens: int | None
    new_tokens: int | None
    moments: tuple[float, ...] = ()
    scores: Sequence[float | None] | None = None

    @property
    def whole(self) -> str:
        """The answer as the model wrote it: servers that split its reasoning off leave the marks out."""
        if not self.reasoning:
            return self.text
        return f"{OPENING}{self.reasoning}{CLOSING}{self.text}" if self.text else f"{OPENING}{self.reasoning}"


class Wire:
    """Makes clients and sends requests. Raises MissingDependency without the openai package.

    idle_s  without a piece of an answer, after which a request counts as failed
    timed   whether answers must come in pieces
    """

    def __init__(self, key: str, idle_s: float, timed: bool, note: Callable[[str], None]) -> None:
        try:
            import openai
        except ImportError:
            raise missing("server") from None
        self._openai: Any = openai
        self._key, self._idle_s, self._timed, self._note = key, idle_s, timed, note

    def client(self, url: str) -> OpenAIClient:
        timeout = self._openai.Timeout(self._idle_s, connect=CONNECT_S)
        http = None
        if url.startswith("http:"):  # to load the certificates of all authorities takes longer than a short answer
            http = self._openai.DefaultAsyncHttpxClient(verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
        api = self._openai.AsyncOpenAI(
            base_url=url, api_key=self._key, max_retries=0, timeout=timeout, http_client=http
        )
        return OpenAIClient(redact_url(url), api)

    async def models(self, client: OpenAIClient) -> list[str]:
        """The names of its models. Raises as `reply`."""
        listed = await self._sent(client, client.api.models.list)
        names = [str(entry.id) for entry in getattr(listed, "data", None) or []]
        if not names:
            raise RetryLater("it lists no model")
        return names

    async def reply(
        self, client: OpenAIClient, arguments: Mapping[str, Any], length: int, stream: bool = True
    ) -> Reply:
        """Sends a request, without what the server refuses to know, and with no more tokens than its context holds.

        length: of the prompt in tokens. Raises Again, TooLong, Refused or RecipeError.
        """
        sent, cut, mute = dict(arguments), False, False
        while True:
            sent["extra_body"] = {k: v for k, v in sent.get("extra_body", {}).items() if k not in client.refused}
            streams = stream and not mute and "stream" not in client.refused
            try:
                return await (self._streamed if streams else self._whole)(client, sent)
            except StreamCut as broken:
                # llama-cpp-python: a stream ends when another request comes, or if the request is wrong
                if broken.begun and self._timed:
                    raise RetryLater("it stopped in the middle of an answer (no reason)") from None
                mute = True
                if broken.begun:
                    client.refused.add("stream")
            except Refused as refused:
                unknown = UNKNOWN.search(refused.reason)
                named = {name for name in sent["extra_body"] if name in refused.reason}
                room = _room(refused.reason, length)
                if streams and unknown and STREAMING.search(refused.reason):
                    options = "stream_options" in refused.reason and "stream_options" not in client.refused
                    client.refused.add("stream_options" if options else "stream")
                elif named and unknown:
                    for name in sorted(named - client.refused):
                        self._note(f"{client.url} does not know {name}: its own default holds")
                    client.refused |= named
                elif room is not None and 0 < room < sent["max_tokens"] and not cut:
                    sent["max_tokens"], cut = room, True
                elif room is not None or TOO_LONG.search(refused.reason):
                    raise TooLong(client.url, refused.reason) from None
                else:
                    raise

    async def _whole(self, client: OpenAIClient, arguments: dict[str, Any]) -> Reply:
        timeout = self._openai.Timeout(max(self._idle_s, WHOLE_S), connect=CONNECT_S)
        return _read(await self._sent(client, _endpoint(client, arguments), **arguments, timeout=timeout))

    async def _streamed(self, client: OpenAIClient, arguments: dict[str, Any]) -> Reply:
        begun = time.perf_counter()
        options: dict[str, Any] = {"stream": True}
        if "stream_options" not in client.refused:
            options["stream_options"] = {"include_usage": True}
        stream = await self._sent(client, _endpoint(client, arguments), **arguments, **options)
        reason, usage = None, None
        texts, thoughts, moments = list[str](), list[str](), list[float]()
        try:
            async with stream:
                if "json" in stream.response.headers.get("content-type", ""):
                    content = await stream.response.aread()
                    return _read(json.loads(content, object_hook=lambda entries: SimpleNamespace(**entries)))
                async for chunk in stream:
                    usage = getattr(chunk, "usage", None) or usage
                    for choice in chunk.choices or []:
                        piece = getattr(choice, "delta", None) or choice
                        new = getattr(piece, "content", None) or getattr(choice, "text", None) or ""
                        thought = _reasoning(piece)
                        if new or thought:
                            moments.append(time.perf_counter() - begun)
                        texts.append(new)
                        thoughts.append(thought)
                        reason = choice.finish_reason or reason
        except json.JSONDecodeError:
            raise RetryLater("its answer is no JSON") from None
        except Exception as error:
            raise self._failure(client, error) from None
        if reason is None:
            raise StreamCut(bool(moments))
        counts = (getattr(usage, "prompt_tokens", None), getattr(usage, "completion_tokens", None))
        return Reply("".join(texts), "".join(thoughts), _finished(reason), *counts, tuple(moments))

    async def _sent(self, client: OpenAIClient, call: Callable[..., Awaitable[Any]], **arguments: Any) -> Any:
        try:
            return await call(**arguments)
        except Exception as error:
            raise self._failure(client, error) from None

    def _failure(self, client: OpenAIClient, error: Exception) -> Exception:
        """What an exception of the openai package, or of the HTTP package below it, means."""
        openai, status = self._openai, int(getattr(error, "status_code", None) or 0)
        reason = self._reason(error)
        if isinstance(error, openai.APIStatusError) and status not in LATER and status < 500:
            if status in (401, 403):
                return RecipeError(f"{client.url} refuses access: {reason}", "set OPENAI_API_KEY to a key for it")
            if status == 404:
                return RecipeError(
                    f"{client.url} has no such model or path: {reason}",
                    "check the model's name, and that the address ends in /v1 if the server's does",
                )
            if status in (400, 422):
                return Refused(client.url, reason)
            return CheckpointError(f"{client.url} refuses the request: {reason}", "look at the server's log")
        http = type(error).__module__.partition(".")[0].startswith("httpx")
        if isinstance(error, openai.APIError) or http:
            return RetryLater(reason, _retry_after(getattr(error, "response", None)))
        return error

    def _reason(self, error: Exception) -> str:
        """On one line, without the key."""
        body = getattr(error, "body", None)
        detail = (body.get("message") or body.get("detail") or body) if isinstance(body, dict) else None
        text = str(detail or body or "") or str(error.__cause__ or "") or str(error) or type(error).__name__
        return " ".join((text if self._key == NO_KEY else text.replace(self._key, "***")).split())[:300]


def redact_url(url: str) -> str:
    """An address without user name and password."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def complete(url: str) -> str:
    """The address of the API: /v1 if only a host is named. Raises RecipeError for what is no address."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise RecipeError(
            f"{redact_url(urlunsplit(parts))} is not the address of a server", "write it as http://localhost:8000/v1"
        )
    return urlunsplit(parts._replace(path=parts.path.rstrip("/") or "/v1"))


def _endpoint(client: OpenAIClient, arguments: Mapping[str, Any]) -> Callable[..., Awaitable[Any]]:
    api = client.api.chat.completions if "messages" in arguments else client.api.completions
    call: Callable[..., Awaitable[Any]] = api.create
    return call


def _read(found: Any) -> Reply:
    """A reply that came as a whole. Raises as `_choice`."""
    choice = _choice(found)
    message = getattr(choice, "message", None) or choice
    usage, logprobs = getattr(found, "usage", None), getattr(choice, "logprobs", None)
    return Reply(
        getattr(message, "content", None) or getattr(choice, "text", None) or "",
        _reasoning(message),
        _finished(choice.finish_reason),
        getattr(usage, "prompt_tokens", None),
        getattr(usage, "completion_tokens", None),
        scores=getattr(logprobs, "token_logprobs", None),
    )


def _choice(found: Any) -> Any:
    """The only choice of a reply. Raises RetryLater if there is none: some report faults with status 200."""
    choices = getattr(found, "choices", None)
    if not choices:
        raise RetryLater(f"it answered {' '.join(str(getattr(found, 'error', None) or found).split())[:200]}")
    return choices[0]


def _finished(reason: str | None) -> bool:
    """Raises RetryLater if the server gave up in the middle."""
    if reason in (None, "", "abort", "error"):
        raise RetryLater(f"it stopped in the middle of an answer ({reason or 'no reason'})")
    return reason != "length"


def _reasoning(message: Any) -> str:
    return str(getattr(message, "reasoning_content", None) or getattr(message, "reasoning", None) or "")


def _room(reason: str, length: int) -> int | None:
    """How many new tokens fit the context, where that is why a request was refused. length: of the prompt, by us."""
    context, given = CONTEXT.search(reason), GIVEN.search(reason)
    if context is None:
        return None
    return int(context[1]) - (int(given[1]) if given else length)


def _retry_after(response: Any) -> float | None:
    """Seconds, from a number or a date (RFC 9110, 10.2.3)."""
    value = getattr(response, "headers", {}).get("retry-after")
    if value is None:
        return None
    try:
        return float(value)
    except ValueError:
        pass
    try:
        return (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
    except (TypeError, ValueError):
        return None

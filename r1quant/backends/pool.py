"""Asks several servers at once, the least busy first, and asks again if one fails. It does not know what it asks.

Requests run on an event loop in one thread of their own, because only there can one that waits for a server be ended
at any moment: Ctrl-C does not wait for an answer that is half an hour away.
"""

from __future__ import annotations

import asyncio
import queue
import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from r1quant.errors import CheckpointError

FIRST_REST_S, LONGEST_REST_S = 0.25, 30.0
SERVED_S = 15.0  # a request that has not failed by then is being worked on


class ServerClient(Protocol):
    """A connection to one server."""

    @property
    def url(self) -> str:
        """For messages."""

    async def close(self) -> None: ...


C = TypeVar("C", bound=ServerClient)
T = TypeVar("T")


class RetryLater(Exception):
    """What a question raises if the same may succeed later; `after` seconds, if the server says so."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.after = reason, after


@dataclass(eq=False)
class _Server(Generic[C]):
    """busy: requests under way; failures: in a row; times are those of time.monotonic."""

    client: C
    busy: int = 0
    failures: int = 0
    failed_at: float = 0.0
    rests_until: float = 0.0


class Pool(Generic[C]):
    """Servers that all answer the same.

    concurrency  requests under way at once, over all servers
    patience_s   how long to go on while every request fails; one success, or one that is being worked on, starts anew
    note         is told, in another thread, when a server fails for the first time
    """

    def __init__(self, concurrency: int, patience_s: float, note: Callable[[str], None]) -> None:
        self._concurrency, self._patience_s, self._note = concurrency, patience_s, note

    def each(self, connect: Callable[[], list[C]], questions: Iterable[Callable[[C], Awaitable[T]]]) -> Iterator[T]:
        """Answers as they come. Never draws more questions than can be under way at once.

        Raises CheckpointError if no server answers for as long as patience lasts, and whatever a question raises;
        answers that are there by then come first.
        """
        waiting = iter(questions)
        ended: queue.SimpleQueue[Future[T]] = queue.SimpleQueue()
        with _event_loop() as loop:
            servers = [_Server(client) for client in connect()]
            asked, under_way = _Asking(servers, self._patience_s, self._note), 0
            try:
                while True:
                    while under_way < self._concurrency and (question := next(waiting, None)) is not None:
                        future = asyncio.run_coroutine_threadsafe(asked.answer(question), loop)
                        future.add_done_callback(ended.put)
                        under_way += 1
                    if not under_way:
                        return
                    future = ended.get()
                    if (failure := future.exception()) is not None:
                        yield from _there(ended)
                        raise failure
                    under_way -= 1
                    yield future.result()
            finally:
                asyncio.run_coroutine_threadsafe(_end([s.client for s in servers]), loop).result()


class _Asking(Generic[C]):
    """The requests of one run. Lives on the event loop."""

    def __init__(self, servers: list[_Server[C]], patience_s: float, note: Callable[[str], None]) -> None:
        self._servers, self._patience_s, self._note = servers, patience_s, note
        self._begun: dict[object, float] = {}
        self._failing_since: float | None = None
        self._noted: set[str] = set()

    async def answer(self, question: Callable[[C], Awaitable[T]]) -> T:
        while True:
            server, request, begun = await self._free(), object(), time.monotonic()
            server.busy += 1
            self._begun[request] = begun
            try:
                found = await question(server.client)
            except RetryLater as failure:
                del self._begun[request]
                self._failed(server, begun, failure)
            else:
                server.failures, server.rests_until, self._failing_since = 0, 0.0, None
                return found
            finally:
                server.busy -= 1
                self._begun.pop(request, None)

    async def _free(self) -> _Server[C]:
        """The least busy server of those that do not rest, as soon as there is one."""
        while True:
            now = time.monotonic()
            ready = [server for server in self._servers if server.rests_until <= now]
            if ready:
                return min(ready, key=lambda server: server.busy)
            await asyncio.sleep(min(server.rests_until for server in self._servers) - now)

    def _failed(self, server: _Server[C], begun: float, failure: RetryLater) -> None:
        """Lets the server rest, twice as long each time; failures of requests sent before the last one count once."""
        now, url = time.monotonic(), server.client.url
        if self._failing_since is None:
            self._failing_since = now
        left = self._failing_since + self._patience_s - now
        if left <= 0 and not any(now - other > SERVED_S for other in self._begun.values()):
            raise CheckpointError(
                f"{url} does not answer: {failure.reason}",
                "check the address and that the server runs, then run the same command again",
            )
        if url not in self._noted:
            self._noted.add(url)
            self._note(f"{url}: {failure.reason}; trying again")
        if begun >= server.failed_at:
            server.failures += 1
        server.failed_at = now
        rest = min(LONGEST_REST_S, FIRST_REST_S * 2.0**server.failures) * random.uniform(0.5, 1)
        rest = rest if failure.after is None else max(failure.after, 0.0) + rest / 10
        server.rests_until = max(server.rests_until, now + (min(rest, left) if left > 0 else rest))


def _there(ended: queue.SimpleQueue[Future[T]]) -> Iterator[T]:
    """The answers that nobody has to wait for any more."""
    with suppress(queue.Empty):
        while True:
            future = ended.get_nowait()
            if future.exception() is None:
                yield future.result()


async def _end(clients: list[C]) -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    for client in clients:
        await client.close()


@contextmanager
def _event_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Runs in a thread of its own until the block ends."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="requests", daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()

"""Who is asked when, on a clock that runs only while everybody sleeps."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Awaitable, Callable
from itertools import pairwise
from types import SimpleNamespace

import pytest

from r1quant.backends import pool
from r1quant.backends.pool import Pool, RetryLater
from r1quant.errors import CheckpointError


class Client:
    def __init__(self, url: str) -> None:
        self.url, self.closed = url, False

    async def close(self) -> None:
        self.closed = True


Question = Callable[[Client], Awaitable[float]]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """.now in seconds."""
    found, asleep = SimpleNamespace(now=1000.0), asyncio.sleep

    async def sleep(seconds: float) -> None:
        found.now += max(seconds, 0.0)
        await asleep(0)

    monkeypatch.setattr(pool, "time", SimpleNamespace(monotonic=lambda: found.now))
    monkeypatch.setattr(asyncio, "sleep", sleep)
    return found


def failing(times: int, clock: SimpleNamespace, after: float | None = None) -> tuple[list[float], Question]:
    """A question that fails so many times, and when it was asked."""
    asked: list[float] = []

    async def ask(client: Client) -> float:
        asked.append(clock.now)
        if len(asked) <= times:
            raise RetryLater("busy", after)
        now: float = clock.now
        return now

    return asked, ask


def test_a_server_that_fails_rests_twice_as_long_each_time(clock: SimpleNamespace) -> None:
    asked, ask = failing(6, clock)
    assert list(Pool[Client](1, 1e6, print).each(lambda: [Client("a")], [ask])) == [asked[-1]]
    rests = [b - a for a, b in pairwise(asked)]
    assert len(rests) == 6
    for i, rest in enumerate(rests):
        longest = min(pool.LONGEST_REST_S, pool.FIRST_REST_S * 2 ** (i + 1))
        assert longest / 2 <= rest <= longest


def test_a_server_is_left_alone_as_long_as_it_says(clock: SimpleNamespace) -> None:
    asked, ask = failing(1, clock, after=120.0)
    list(Pool[Client](1, 300.0, print).each(lambda: [Client("a")], [ask]))
    assert 120 <= asked[1] - asked[0] < 125


def test_patience_ends_with_the_last_reason(clock: SimpleNamespace) -> None:
    asked, ask = failing(10**6, clock)
    clients, notes = [Client("http://a"), Client("http://b")], list[str]()
    with pytest.raises(CheckpointError, match="does not answer: busy") as caught:
        list(Pool[Client](2, 90.0, notes.append).each(lambda: clients, [ask]))
    assert str(caught.value).count("\n") == 1
    assert asked[-1] - asked[0] == pytest.approx(90.0)
    assert sorted(notes) == ["http://a: busy; trying again", "http://b: busy; trying again"]
    assert all(client.closed for client in clients)


def test_a_success_renews_patience(clock: SimpleNamespace) -> None:
    count = 0

    async def every_third(client: Client) -> float:
        nonlocal count
        count += 1
        if count % 3:
            raise RetryLater("busy", 40.0)
        return 0.0

    assert len(list(Pool[Client](1, 100.0, print).each(lambda: [Client("a")], [every_third] * 5))) == 5
    assert count == 15 and clock.now > 1000 + 5 * 80


def test_patience_lasts_while_a_request_is_being_worked_on(
    clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "SERVED_S", 60.0)
    done = asyncio.Event()
    asked, ask = failing(8, clock, after=100.0)

    async def long(client: Client) -> float:
        await done.wait()
        return -1.0

    async def refused_meanwhile(client: Client) -> float:
        found = await ask(client)
        done.set()
        return found

    found = list(Pool[Client](2, 300.0, print).each(lambda: [Client("a")], [long, refused_meanwhile]))
    assert sorted(found)[0] == -1.0 and asked[-1] - asked[0] >= 800


def test_a_server_that_rests_is_passed_over(clock: SimpleNamespace) -> None:
    asked: list[str] = []

    async def ask(client: Client) -> float:
        asked.append(client.url)
        if client.url == "bad":
            raise RetryLater("busy", 1000.0)
        return 0.0

    list(Pool[Client](1, 1e6, print).each(lambda: [Client("bad"), Client("good")], [ask] * 4))
    assert asked == ["bad", "good", "good", "good", "good"]


def test_whatever_else_a_question_raises_ends_all() -> None:
    clients, ended = [Client("a")], list[bool]()

    async def never(client: Client) -> float:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)
        return 0.0

    async def wrong(client: Client) -> float:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(Pool[Client](3, 1.0, print).each(lambda: clients, [never, never, wrong]))
    assert ended == [True, True] and clients[0].closed
    assert "requests" not in {thread.name for thread in threading.enumerate()}


def test_answers_that_are_there_come_before_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    ended, counted = list[object](), threading.Condition()

    class Watched(queue.SimpleQueue[object]):
        def put(self, item: object, *rest: object) -> None:
            super().put(item)
            with counted:
                ended.append(item)
                counted.notify_all()

    monkeypatch.setattr(pool, "queue", SimpleNamespace(SimpleQueue=Watched, Empty=queue.Empty))
    failed = asyncio.Event()

    async def once(client: Client) -> float:
        return 1.0

    async def wrong(client: Client) -> float:
        failed.set()
        raise ZeroDivisionError

    async def late(client: Client) -> float:
        await failed.wait()
        return 2.0

    async def never(client: Client) -> float:
        await asyncio.Event().wait()
        return 3.0

    found = Pool[Client](5, 1.0, print).each(lambda: [Client("a")], [once, wrong, late, wrong, never])
    kept = [next(found)]  # once: the first that was begun ends first
    with counted:
        assert counted.wait_for(lambda: len(ended) == 4, timeout=30)
    with pytest.raises(ZeroDivisionError):
        for answer in found:
            kept.append(answer)
    assert kept == [1.0, 2.0]
    assert "requests" not in {thread.name for thread in threading.enumerate()}


def test_an_answer_that_nobody_waits_for_is_given_up() -> None:
    async def once(client: Client) -> float:
        return time.monotonic()

    async def never(client: Client) -> float:
        await asyncio.Event().wait()
        return 0.0

    clients = [Client("a")]
    found = Pool[Client](2, 1.0, print).each(lambda: clients, [once, never])
    next(found)
    found.close()  # type: ignore[attr-defined]
    assert clients[0].closed and "requests" not in {thread.name for thread in threading.enumerate()}

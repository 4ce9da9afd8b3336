"""One supervisord, asked once for all who watch it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from deferrable_ops.exceptions import SupervisordRefused, SupervisordUnavailable
from deferrable_ops.upstreams.supervisord.poller import ProcessPoller, ProcessSubscription

SHORT = 0.05
NEVER = 3600.0


class Daemon:
    """A supervisord that counts how often it is asked, and whether twice at once."""

    def __init__(self) -> None:
        self.asked = 0
        self.failing: Exception | None = None
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self._answering = False

    async def processes(self) -> list[dict[str, Any]]:
        assert not self._answering, "asked twice at once"
        self.asked += 1
        number = self.asked
        self._answering = True
        try:
            await self.may_answer.wait()
        finally:
            self._answering = False
        if self.failing is not None:
            raise self.failing
        return [{"reading": number}]


async def follow(feed: ProcessPoller, readings: int, interval: float = SHORT) -> list[int]:
    with feed.watch(interval) as watch:
        return [(await watch.next())[0]["reading"] for _ in range(readings)]


async def waiting(watch: ProcessSubscription) -> asyncio.Task[Any]:
    """A task that waits for the watch's next reading."""
    task = asyncio.create_task(watch.next())
    while not watch.is_waiting:
        await asyncio.sleep(0)
    return task


async def test_first_reading_comes_at_once() -> None:
    daemon = Daemon()
    async with asyncio.timeout(5):
        assert await follow(ProcessPoller(daemon.processes), 1, interval=NEVER) == [1]


async def test_many_watchers_cost_what_one_does() -> None:
    daemon = Daemon()
    feed = ProcessPoller(daemon.processes)
    found = await asyncio.gather(*(follow(feed, 5) for _ in range(200)))
    assert found == [[1, 2, 3, 4, 5]] * 200
    assert daemon.asked == 5


async def test_watchers_that_come_one_after_another_end_up_at_the_same_moment() -> None:
    daemon = Daemon()
    feed = ProcessPoller(daemon.processes)
    tasks = []
    for _ in range(10):
        tasks.append(asyncio.create_task(follow(feed, 20)))
        await asyncio.sleep(SHORT / 7)
    found = await asyncio.gather(*tasks)
    assert all(readings == list(range(readings[0], readings[0] + 20)) for readings in found)
    assert daemon.asked == max(readings[-1] for readings in found) <= 20 + 10


async def test_reading_that_was_begun_before_is_not_for_a_newcomer() -> None:
    """It may have been asked before the newcomer started a program."""
    daemon = Daemon()
    feed = ProcessPoller(daemon.processes)
    daemon.may_answer.clear()
    with feed.watch(NEVER) as first, feed.watch(NEVER) as second:
        early = await waiting(first)
        while not daemon.asked:
            await asyncio.sleep(0)
        with feed.watch(NEVER) as late:
            newcomer = await waiting(late)
            daemon.may_answer.set()
            async with asyncio.timeout(5):
                assert (await early)[0]["reading"] == 1
                assert (await newcomer)[0]["reading"] == 2
                assert (await second.next())[0]["reading"] == 2, "what is there already need not be asked for"


async def test_intervals_are_kept() -> None:
    daemon, loop = Daemon(), asyncio.get_running_loop()
    feed = ProcessPoller(daemon.processes)
    begun = loop.time()
    await follow(feed, 4, interval=0.1)
    assert 0.3 <= loop.time() - begun < 3


async def test_nobody_who_waits_is_nobody_to_ask_for() -> None:
    daemon = Daemon()
    feed = ProcessPoller(daemon.processes)
    with feed.watch(0.001) as watch:
        await watch.next()
        asked = daemon.asked
        await asyncio.sleep(0.05)
        assert daemon.asked == asked
        await watch.next()
        assert daemon.asked == asked + 1


async def test_trouble_reaches_all_and_does_not_end_the_watching() -> None:
    daemon = Daemon()
    feed = ProcessPoller(daemon.processes)
    with feed.watch(SHORT) as one, feed.watch(SHORT) as other:
        for error in (SupervisordUnavailable("away"), SupervisordRefused("login"), ValueError("odd")):
            daemon.failing = error
            failed = await asyncio.gather(one.next(), other.next(), return_exceptions=True)
            assert failed == [error, error]
        daemon.failing = None
        assert (await one.next()) == (await other.next())


async def test_watcher_that_is_cancelled_disturbs_nobody() -> None:
    daemon = Daemon()
    feed = ProcessPoller(daemon.processes)
    daemon.may_answer.clear()
    with feed.watch(SHORT) as one, feed.watch(SHORT) as other:
        cancelled, kept = await waiting(one), await waiting(other)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        daemon.may_answer.set()
        async with asyncio.timeout(5):
            assert (await kept)[0]["reading"] == 1


async def test_last_watcher_ends_the_asking_and_the_next_begins_it() -> None:
    daemon = Daemon()
    feed = ProcessPoller(daemon.processes)
    before = asyncio.all_tasks()
    assert await follow(feed, 2) == [1, 2]
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
    assert await follow(feed, 2) == [3, 4]

"""One poller serves all subscriptions to a supervisord."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from deferrable_ops.exceptions import SupervisordRefused, SupervisordUnavailable
from deferrable_ops.upstreams.supervisord.poller import ProcessPoller, ProcessSubscription

SHORT = 0.05
NEVER = 3600.0


class Daemon:
    """A fake supervisord that counts its requests and rejects concurrent ones."""

    def __init__(self) -> None:
        self.requests = 0
        self.failing: Exception | None = None
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self._answering = False

    async def processes(self) -> list[dict[str, Any]]:
        assert not self._answering, "two requests at the same time"
        self.requests += 1
        number = self.requests
        self._answering = True
        try:
            await self.may_answer.wait()
        finally:
            self._answering = False
        if self.failing is not None:
            raise self.failing
        return [{"reading": number}]


async def read_many(poller: ProcessPoller, readings: int, interval: float = SHORT) -> list[int]:
    with poller.watch(interval) as subscription:
        return [(await subscription.next())[0]["reading"] for _ in range(readings)]


async def waiting(subscription: ProcessSubscription) -> asyncio.Task[Any]:
    """Start a task that waits for the next reading."""
    task = asyncio.create_task(subscription.next())
    while not subscription.is_waiting:
        await asyncio.sleep(0)
    return task


async def test_first_reading_is_immediate() -> None:
    daemon = Daemon()
    async with asyncio.timeout(5):
        assert await read_many(ProcessPoller(daemon.processes), 1, interval=NEVER) == [1]


async def test_many_subscriptions_cost_as_much_as_one() -> None:
    daemon = Daemon()
    poller = ProcessPoller(daemon.processes)
    found = await asyncio.gather(*(read_many(poller, 5) for _ in range(200)))
    assert found == [[1, 2, 3, 4, 5]] * 200
    assert daemon.requests == 5


async def test_staggered_subscriptions_fall_into_step() -> None:
    daemon = Daemon()
    poller = ProcessPoller(daemon.processes)
    tasks = []
    for _ in range(10):
        tasks.append(asyncio.create_task(read_many(poller, 20)))
        await asyncio.sleep(SHORT / 7)
    found = await asyncio.gather(*tasks)
    assert all(readings == list(range(readings[0], readings[0] + 20)) for readings in found)
    assert daemon.requests == max(readings[-1] for readings in found) <= 20 + 10


async def test_new_subscription_does_not_get_a_reading_started_before() -> None:
    """The reading may be older than a program that the new subscriber has started."""
    daemon = Daemon()
    poller = ProcessPoller(daemon.processes)
    daemon.may_answer.clear()
    with poller.watch(NEVER) as first, poller.watch(NEVER) as second:
        early = await waiting(first)
        while not daemon.requests:
            await asyncio.sleep(0)
        with poller.watch(NEVER) as late:
            newcomer = await waiting(late)
            daemon.may_answer.set()
            async with asyncio.timeout(5):
                assert (await early)[0]["reading"] == 1
                assert (await newcomer)[0]["reading"] == 2
                assert (await second.next())[0]["reading"] == 2, "the latest reading is reused"


async def test_intervals_are_kept() -> None:
    daemon, loop = Daemon(), asyncio.get_running_loop()
    poller = ProcessPoller(daemon.processes)
    begun = loop.time()
    await read_many(poller, 4, interval=0.1)
    assert 0.3 <= loop.time() - begun < 3


async def test_no_requests_while_no_subscription_waits() -> None:
    daemon = Daemon()
    poller = ProcessPoller(daemon.processes)
    with poller.watch(0.001) as subscription:
        await subscription.next()
        requests = daemon.requests
        await asyncio.sleep(0.05)
        assert daemon.requests == requests
        await subscription.next()
        assert daemon.requests == requests + 1


async def test_error_reaches_all_subscriptions_and_does_not_end_the_polling() -> None:
    daemon = Daemon()
    poller = ProcessPoller(daemon.processes)
    with poller.watch(SHORT) as one, poller.watch(SHORT) as other:
        for error in (SupervisordUnavailable("away"), SupervisordRefused("login"), ValueError("odd")):
            daemon.failing = error
            failed = await asyncio.gather(one.next(), other.next(), return_exceptions=True)
            assert failed == [error, error]
        daemon.failing = None
        assert (await one.next()) == (await other.next())


async def test_cancelled_subscription_does_not_disturb_others() -> None:
    daemon = Daemon()
    poller = ProcessPoller(daemon.processes)
    daemon.may_answer.clear()
    with poller.watch(SHORT) as one, poller.watch(SHORT) as other:
        cancelled, kept = await waiting(one), await waiting(other)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        daemon.may_answer.set()
        async with asyncio.timeout(5):
            assert (await kept)[0]["reading"] == 1


async def test_polling_ends_with_the_last_subscription_and_restarts_with_the_next() -> None:
    daemon = Daemon()
    poller = ProcessPoller(daemon.processes)
    before = asyncio.all_tasks()
    assert await read_many(poller, 2) == [1, 2]
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
    assert await read_many(poller, 2) == [3, 4]

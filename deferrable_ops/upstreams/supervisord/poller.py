"""Polls the states of processes from a supervisord. All subscriptions together send one request at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import Context
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Reading(Generic[T]):
    number: int
    started: float
    result: T | Exception


class ProcessSubscription(Generic[T]):
    """A subscription to the states of supervisord's processes.

    A subscription can be used inside the ``with`` block of :meth:`ProcessPoller.watch`.
    """

    def __init__(self, poller: ProcessPoller[T], interval: float, due: float, wanted: int) -> None:
        self._poller = poller
        self._interval = interval
        self._wanted = wanted
        self._reading: asyncio.Future[_Reading[T]] | None = None
        self.due = due

    async def next(self) -> T:
        """Wait for the next poll result, and return the states of the processes.

        The first call of this method polls supervisord at once. Each further call returns the poll result after the
        interval, or an earlier result if another subscription has a shorter interval.

        :raises SupervisordUnavailable: if supervisord did not respond. The next call of this method may succeed.
        :raises SupervisordRefused: if supervisord returned an error, or rejected the user name or password.
        """
        reading = self._poller.latest(self._wanted, self._interval)
        if reading is None:
            self._reading = asyncio.get_running_loop().create_future()
            self._poller.start()
            try:
                reading = await self._reading
            finally:
                self._reading = None
        self._wanted, self.due = reading.number + 1, reading.started + self._interval
        if isinstance(reading.result, Exception):
            raise reading.result.with_traceback(None)
        return reading.result

    @property
    def is_waiting(self) -> bool:
        """Whether a call of :meth:`next` is waiting for a poll result."""
        return self._reading is not None and not self._reading.done()

    def deliver(self, reading: _Reading[T]) -> None:
        """If a call of :meth:`next` is waiting for this poll result, let that call return the poll result."""
        if self._reading is not None and not self._reading.done() and reading.number >= self._wanted:
            self._reading.set_result(reading)


class ProcessPoller(Generic[T]):
    """Polls a supervisord while at least one subscription waits for a poll result. The time between two polls is the
    shortest interval of these subscriptions.

    When a poll ends, all waiting subscriptions get its result. So subscriptions with the same interval soon wait for
    the same poll. A subscription gets only the results of polls that began after the subscription was created.

    :param read: a function that requests the states of the processes from supervisord.
    """

    def __init__(self, read: Callable[[], Awaitable[T]]) -> None:
        self._read = read
        self._subscriptions: set[ProcessSubscription[T]] = set()
        self._latest: _Reading[T] | None = None
        self._next_number = 0
        self._wakeup = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @contextmanager
    def watch(self, interval: float) -> Iterator[ProcessSubscription[T]]:
        """Return a context manager for a subscription. The subscription ends with the ``with`` block.

        :param interval: number of seconds between two polls for this subscription.
        """
        subscription = ProcessSubscription(
            self, interval, asyncio.get_running_loop().time(), self._next_number
        )
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)
            if not self._subscriptions and self._task is not None:
                self._task.cancel()
                self._task = None

    def latest(self, wanted: int, max_age: float) -> _Reading[T] | None:
        """Return the newest poll result.

        Return None if the number of the newest poll is less than `wanted`, or if this poll began more than `max_age`
        seconds ago.
        """
        latest = self._latest
        if latest is None or latest.number < wanted:
            return None
        return latest if asyncio.get_running_loop().time() - latest.started <= max_age else None

    def start(self) -> None:
        """Start the polling task.

        If the polling task is already running, it computes the time of the next poll again.
        """
        if self._task is None:
            # Use a new context, because the task outlives the trigger that starts it.
            self._task = asyncio.create_task(
                self._poll(), name="deferrable-ops supervisord", context=Context()
            )
        self._wakeup.set()

    async def _poll(self) -> None:
        while True:
            await self._until_due()
            number, started = self._next_number, asyncio.get_running_loop().time()
            self._next_number += 1
            try:
                result: T | Exception = await self._read()
            except Exception as error:
                # The waiting subscriptions raise this error.
                result = error
            self._latest = _Reading(number, started, result)
            for subscription in self._subscriptions:
                subscription.deliver(self._latest)

    async def _until_due(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._wakeup.clear()
            due = min((one.due for one in self._subscriptions if one.is_waiting), default=None)
            if due is not None and due <= loop.time():
                return
            with suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self._wakeup.wait()

"""What a supervisord says of its processes, asked and understood once for all who watch it."""

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
    begun: float
    found: T | Exception


class ProcessSubscription(Generic[T]):
    """One who watches, for as long as the block of :meth:`Feed.watch` lasts."""

    def __init__(self, feed: ProcessPoller[T], interval: float, due: float, wanted: int) -> None:
        self._feed = feed
        self._interval = interval
        self._wanted = wanted
        self._reading: asyncio.Future[_Reading[T]] | None = None
        self.due = due

    async def next(self) -> T:
        """Return the next reading: the first at once, each further one an interval later or sooner, with the others'.

        :raises SupervisordUnavailable: supervisord did not answer this time; the next reading may come.
        :raises SupervisordRefused: it said no.
        """
        reading = self._feed.latest(self._wanted, self._interval)
        if reading is None:
            self._reading = asyncio.get_running_loop().create_future()
            self._feed.ask()
            try:
                reading = await self._reading
            finally:
                self._reading = None
        self._wanted, self.due = reading.number + 1, reading.begun + self._interval
        if isinstance(reading.found, Exception):
            raise reading.found.with_traceback(None)
        return reading.found

    @property
    def waits(self) -> bool:
        """Whether it waits for a reading."""
        return self._reading is not None and not self._reading.done()

    def take(self, reading: _Reading[T]) -> None:
        """Take a reading, if that is waited for."""
        if self._reading is not None and not self._reading.done() and reading.number >= self._wanted:
            self._reading.set_result(reading)


class ProcessPoller(Generic[T]):
    """Asks a supervisord while somebody waits for its answer, at the shortest interval of those who do.

    Each reading goes to all who wait, whatever their intervals: from then on they wait for the same moment. Nobody gets
    one that was begun before he came. What is read is one object for all of them.

    :param read: asks supervisord once.
    """

    def __init__(self, read: Callable[[], Awaitable[T]]) -> None:
        self._read = read
        self._watches: set[ProcessSubscription[T]] = set()
        self._latest: _Reading[T] | None = None
        self._begun = 0
        self._somebody_waits = asyncio.Event()
        self._asking: asyncio.Task[None] | None = None

    @contextmanager
    def watch(self, interval: float) -> Iterator[ProcessSubscription[T]]:
        """Watch for as long as the block lasts.

        :param interval: seconds between two readings.
        """
        watch = ProcessSubscription(self, interval, asyncio.get_running_loop().time(), self._begun)
        self._watches.add(watch)
        try:
            yield watch
        finally:
            self._watches.discard(watch)
            if not self._watches and self._asking is not None:
                self._asking.cancel()
                self._asking = None

    def latest(self, wanted: int, not_older: float) -> _Reading[T] | None:
        """Return a reading that is there already, if it is new to somebody and not old."""
        found = self._latest
        if found is None or found.number < wanted:
            return None
        return found if asyncio.get_running_loop().time() - found.begun <= not_older else None

    def ask(self) -> None:
        """Let supervisord be asked when the first of those who wait is due."""
        if self._asking is None:
            # In a context of its own: it outlives the trigger that happens to come first.
            self._asking = asyncio.create_task(
                self._ask(), name="deferrable-ops supervisord", context=Context()
            )
        self._somebody_waits.set()

    async def _ask(self) -> None:
        while True:
            await self._until_due()
            number, begun = self._begun, asyncio.get_running_loop().time()
            self._begun += 1
            try:
                found: T | Exception = await self._read()
            except Exception as error:  # whatever it is, those who wait must learn of it
                found = error
            self._latest = _Reading(number, begun, found)
            for watch in self._watches:
                watch.take(self._latest)

    async def _until_due(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._somebody_waits.clear()
            due = min((watch.due for watch in self._watches if watch.waits), default=None)
            if due is not None and due <= loop.time():
                return
            with suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self._somebody_waits.wait()

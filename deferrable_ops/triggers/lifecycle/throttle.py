"""Limits how many triggers of a process do the same thing at the same time."""

from __future__ import annotations

import asyncio
from collections import deque
from weakref import WeakKeyDictionary


class Throttle:
    """Grants a limited number of slots in each event loop, in the order of the requests.

    ::

        with throttle.slot() as granted:
            await granted
            ...

    :param limit: how many slots are in use at once.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._queues: WeakKeyDictionary[asyncio.AbstractEventLoop, SlotQueue] = WeakKeyDictionary()

    def slot(self) -> Slot:
        """Return a new slot of the running event loop."""
        loop = asyncio.get_running_loop()
        if loop not in self._queues:
            self._queues[loop] = SlotQueue(self._limit)
        return Slot(self._queues[loop])


class Slot:
    """A context manager that requests a slot and releases it. Entering it returns a future: await that first."""

    # A task that waits for a semaphore keeps two coroutines, 0.5 kB, and thousands of tasks wait.
    __slots__ = ("_granted", "_queue")

    def __init__(self, queue: SlotQueue) -> None:
        self._queue = queue

    def __enter__(self) -> asyncio.Future[None]:
        """Request the slot and return the future that is done once it is granted."""
        self._granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.request(self._granted)
        return self._granted

    def __exit__(self, *_: object) -> None:
        """Release the slot, or withdraw the request for it."""
        if not self._granted.cancel() and not self._granted.cancelled():
            self._queue.release()


class SlotQueue:
    """The free slots of one event loop, and the requests that wait for one."""

    def __init__(self, free: int) -> None:
        self._free = free
        self._requests: deque[asyncio.Future[None]] = deque()

    def request(self, granted: asyncio.Future[None]) -> None:
        """Grant a slot by setting the future's result: at once, or when one is free."""
        self._requests.append(granted)
        self._grant()

    def release(self) -> None:
        """Return a slot, for the next request."""
        self._free += 1
        self._grant()

    def _grant(self) -> None:
        while self._free and self._requests:
            granted = self._requests.popleft()
            if not granted.done():
                granted.set_result(None)
                self._free -= 1

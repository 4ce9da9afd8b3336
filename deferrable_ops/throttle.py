"""Limits how many triggers of a process run the same operation at the same time."""

from __future__ import annotations

import asyncio
from heapq import heappop, heappush
from itertools import count
from weakref import WeakKeyDictionary


class Throttle:
    """Grants a limited number of slots in each event loop.

    Requests with a lower rank get a slot first. Among requests with the same rank, the oldest request gets a slot
    first.

    For example::

        with throttle.slot() as granted:
            await granted
            ...

    :param limit: how many slots can be in use at the same time.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._queues: WeakKeyDictionary[asyncio.AbstractEventLoop, SlotQueue] = WeakKeyDictionary()

    def slot(self, rank: int = 0) -> Slot:
        """Return a new slot for the running event loop.

        :param rank: the rank of the request: requests with a lower rank get a slot first.
        """
        loop = asyncio.get_running_loop()
        if loop not in self._queues:
            self._queues[loop] = SlotQueue(self._limit)
        return Slot(self._queues[loop], rank)


class Slot:
    """A context manager that requests a slot and releases it.

    The ``with`` statement of a slot returns a future, which the caller must await before using the slot.
    """

    # Not a semaphore: a task that waits for a semaphore keeps two coroutines (0.5 kB), and thousands of tasks wait.
    __slots__ = ("_granted", "_queue", "_rank")

    def __init__(self, queue: SlotQueue, rank: int) -> None:
        self._queue = queue
        self._rank = rank

    def __enter__(self) -> asyncio.Future[None]:
        """Request the slot, and return a future that completes when the slot is granted."""
        self._granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.request(self._granted, self._rank)
        return self._granted

    def __exit__(self, *_: object) -> None:
        """Release the slot, or withdraw the request if the slot is not granted yet."""
        if not self._granted.cancel() and not self._granted.cancelled():
            self._queue.release()


class SlotQueue:
    """The free slots of one event loop, and the requests that wait for a slot."""

    def __init__(self, free: int) -> None:
        self._free = free
        self._requests: list[tuple[int, int, asyncio.Future[None]]] = []
        self._numbers = count()

    def request(self, granted: asyncio.Future[None], rank: int) -> None:
        """Queue a request.

        The result of `granted` is set when the slot is granted, or immediately if a slot is free.
        """
        heappush(self._requests, (rank, next(self._numbers), granted))
        self._grant()

    def release(self) -> None:
        """Release a slot, and grant the slot to the next request."""
        self._free += 1
        self._grant()

    def _grant(self) -> None:
        while self._free and self._requests:
            granted = heappop(self._requests)[2]
            if not granted.done():
                granted.set_result(None)
                self._free -= 1

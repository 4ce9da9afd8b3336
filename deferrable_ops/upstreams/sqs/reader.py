"""One who waits for messages of a queue: what the polling thread hands back to the waiting trigger."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from deferrable_ops.events.event import Event
from deferrable_ops.exceptions import SqsRefused

Store = Callable[[Sequence[Event]], Awaitable[object]]
"""Stores messages in one transaction, in their order, and returns once it is committed. What it raises is tried again.
A message may come again: it is told by its dedupe key."""


class QueueListener(Protocol):
    """Who is told of trouble, on the event loop of the waits."""

    def warn(self, text: str, /) -> None:
        """Take what the task's log should say; polling goes on."""

    def fail(self, reason: str, /) -> None:
        """Take the reason why the queue cannot be polled, and trying again would not help."""


class QueueReader:
    """One specification of one wait, made on the event loop of the wait. There are thousands."""

    __slots__ = ("_listener", "_loop", "_store", "_warned")

    def __init__(self, store: Store, listener: QueueListener) -> None:
        self._store = store
        self._listener = listener
        self._warned: str | None = None
        self._loop = asyncio.get_running_loop()

    async def store(self, events: Sequence[Event]) -> None:
        """Store messages, from the polling thread."""
        if self._loop.is_closed():
            raise RuntimeError("the event loop of the wait is closed")
        storing = asyncio.run_coroutine_threadsafe(self._store_here(events), self._loop)
        await asyncio.wrap_future(storing)

    def warn(self, text: str) -> None:
        """Hand over a warning, from the polling thread."""
        if text != self._warned:
            self._warned = text
            self._call_soon(self._listener.warn, text)

    def fail(self, refused: SqsRefused) -> None:
        """End the wait, from the polling thread."""
        self._call_soon(self._listener.fail, str(refused))

    async def _store_here(self, events: Sequence[Event]) -> None:
        await self._store(events)

    def _call_soon(self, take: Callable[[str], None], news: str) -> None:
        try:
            self._loop.call_soon_threadsafe(take, news)
        except RuntimeError:
            return  # its event loop is closed: nobody waits any more

"""One who waits for messages of a queue: what the polling thread hands back to the waiting trigger."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from deferrable_ops.events.event import Event
from deferrable_ops.exceptions import SqsRefused

Store = Callable[[Sequence[Event]], Awaitable[object]]
"""Stores messages in one transaction, in their order, and returns once it is committed. What it raises is tried again.
A message may come again: it is told by its dedupe key."""


class Reading:
    """One specification of one wait, made on the event loop of the wait."""

    __slots__ = ("_fail", "_loop", "_store", "_warn", "_warned")

    def __init__(self, store: Store, warn: Callable[[str], None], fail: Callable[[str], None]) -> None:
        self._store = store
        self._warn = warn
        self._warned: str | None = None
        self._fail = fail
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
            self._tell(self._warn, text)

    def fail(self, refused: SqsRefused) -> None:
        """End the wait, from the polling thread."""
        self._tell(self._fail, str(refused))

    async def _store_here(self, events: Sequence[Event]) -> None:
        await self._store(events)

    def _tell(self, take: Callable[[str], None], news: str) -> None:
        try:
            self._loop.call_soon_threadsafe(take, news)
        except RuntimeError:
            return  # its event loop is closed: nobody waits any more

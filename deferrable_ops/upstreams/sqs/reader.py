"""Passes the messages, warnings and errors of a queue from the thread of the pollers to the trigger of a
waiting task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from deferrable_ops.events.event import Event
from deferrable_ops.exceptions import SqsRefused

Store = Callable[[Sequence[Event]], Awaitable[object]]
"""A function that stores messages in one transaction, in the given order, and returns after the commit.

If the function raises an error, the function is called again. The inbox discards repeated messages by their dedupe
keys.
"""


class QueueListener(Protocol):
    """Receives the warnings and the errors that occur while a queue is polled for a task. Its methods are called in the
    triggerer's event loop.
    """

    def warn(self, text: str, /) -> None:
        """Write a warning to the task's log. After the warning, the queue is still polled."""

    def fail(self, error: SqsRefused, has_read: bool, /) -> None:
        """Handle the error that ends the subscription, because SQS refuses to return messages from the queue.

        :param has_read: whether SQS has already answered a receive call for this task.
        """


class QueueReader:
    """Passes the messages of one SQS queue to one waiting task.

    Create the reader on the event loop on which the task's trigger runs. A process can have thousands of readers.
    """

    __slots__ = ("_listener", "_loop", "_store", "_warned")

    def __init__(self, store: Store, listener: QueueListener) -> None:
        self._store = store
        self._listener = listener
        self._warned: str | None = None
        self._loop = asyncio.get_running_loop()

    async def store(self, events: Sequence[Event]) -> None:
        """Store messages in the inbox. This method is called in the thread of the pollers."""
        if self._loop.is_closed():
            raise RuntimeError(
                "the event loop of the waiting task is closed, so the messages cannot be stored"
            )
        storing = asyncio.run_coroutine_threadsafe(self._store_here(events), self._loop)
        await asyncio.wrap_future(storing)

    def warn(self, text: str) -> None:
        """Pass a warning to the listener. This method is called in the thread of the pollers."""
        if text != self._warned:
            self._warned = text
            self._call_soon(self._listener.warn, text)

    def fail(self, refused: SqsRefused, has_read: bool) -> None:
        """Pass the error that ends the task's wait to the listener. This method is called in the thread of the
        pollers.
        """
        self._call_soon(self._listener.fail, refused, has_read)

    async def _store_here(self, events: Sequence[Event]) -> None:
        await self._store(events)

    def _call_soon(self, take: Callable[..., None], *news: object) -> None:
        try:
            self._loop.call_soon_threadsafe(take, *news)
        except RuntimeError:
            # The event loop is closed, so the wait has ended.
            return

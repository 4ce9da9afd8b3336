"""One call for all who ask for it while it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import Generic, TypeVar

T = TypeVar("T")


class SharedCall(Generic[T]):
    """Runs a function for the first who asks, and gives its result or its error to all who ask meanwhile.

    So a database that is away costs everybody one timeout, and not one after another. It runs in a context of
    its own, because it outlives who asked first.
    """

    def __init__(self, call: Callable[[], Awaitable[T]]) -> None:
        self._call = call
        self._running: asyncio.Task[T] | None = None

    async def __call__(self) -> T:
        """Return the result of the call under way, or of a new one; it outlives a cancelled caller."""
        if self._running is None:
            self._running = asyncio.create_task(
                self._run(), name="deferrable-ops shared call", context=Context()
            )
            self._running.add_done_callback(self._forget)
        return await asyncio.shield(self._running)

    async def cancel(self) -> None:
        """Cancel the call under way."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    async def _run(self) -> T:
        return await self._call()

    def _forget(self, task: asyncio.Task[T]) -> None:
        self._running = None
        if not task.cancelled():
            task.exception()  # retrieved, in case all who asked are gone

"""Lets concurrent callers of a function share one call of this function."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import Generic, TypeVar

T = TypeVar("T")


class SharedCall(Generic[T]):
    """Shares one run of a function between concurrent callers.

    The first caller starts the function. Callers that arrive while the function runs get the result or error of this
    run. During an outage, all callers wait for the timeout of this one run, and not for one timeout after another. The
    function runs in an empty context, so that it does not write to the log of the task whose trigger called the
    function first.
    """

    def __init__(self, call: Callable[[], Awaitable[T]]) -> None:
        self._call = call
        self._running: asyncio.Task[T] | None = None

    async def __call__(self) -> T:
        """Return the result of the function. Start the function, unless it is already running.

        Cancelling a caller does not cancel the function.
        """
        if self._running is None:
            self._running = asyncio.create_task(
                self._run(), name="deferrable-ops shared call", context=Context()
            )
            self._running.add_done_callback(self._forget)
        return await asyncio.shield(self._running)

    async def cancel(self) -> None:
        """Cancel the function if it is running."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    async def _run(self) -> T:
        return await self._call()

    def _forget(self, task: asyncio.Task[T]) -> None:
        self._running = None
        if not task.cancelled():
            # Mark the error as retrieved: if every caller was cancelled, asyncio would log it otherwise.
            task.exception()

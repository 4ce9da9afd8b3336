"""Runs AWS calls in a thread, because creating a client and parsing large responses would block the event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar, TypeVar

from deferrable_ops.upstreams.aws.connection import AwsSettings
from deferrable_ops.upstreams.aws.session import AwsSession

log = logging.getLogger(__name__)
T = TypeVar("T")

_STOP_SECONDS = 10.0


class AwsThread:
    """A thread that calls AWS with the credentials of one Airflow connection, outside the triggerer's event loop."""

    thread_name: ClassVar[str]

    def __init__(self, settings: AwsSettings) -> None:
        self._settings = settings
        self._loop = asyncio.new_event_loop()
        self._session: AwsSession
        self._thread = threading.Thread(target=self._run, name=self.thread_name, daemon=True)

    async def start(self) -> None:
        """Start the thread.

        :raises ConfigurationError: if a setting of the Airflow connection is invalid.
        """
        self._thread.start()
        try:
            await self._run_in_thread(self._open())
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Cancel all asyncio tasks of the thread, close all connections to AWS, and wait until the thread has ended."""
        self._call_soon(self._loop.stop)
        await asyncio.to_thread(self._thread.join, _STOP_SECONDS)
        if self._thread.is_alive():
            log.warning(
                "The thread %s of %s did not end within %g s; no action is needed, because the thread ends with "
                "the process",
                self.thread_name,
                self._settings.identity,
                _STOP_SECONDS,
            )

    def _call_soon(self, do: Callable[..., object], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(do, *arguments)
        except RuntimeError:
            # The thread has ended.
            return

    async def _run_in_thread(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self._loop))

    async def _open(self) -> None:
        self._session = AwsSession(self._settings)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.run_until_complete(self._end())
            self._loop.close()

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        if hasattr(self, "_session"):
            await self._session.close()

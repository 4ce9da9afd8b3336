"""The thread in which queues are polled: making clients and reading large answers must not hold up the Triggerer."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from deferrable_ops import settings
from deferrable_ops.events.queues import Queue
from deferrable_ops.exceptions import SqsRefused
from deferrable_ops.upstreams.aws_connection import AwsSettings
from deferrable_ops.upstreams.aws_session import AwsSession
from deferrable_ops.upstreams.sqs_queue import Polling
from deferrable_ops.upstreams.sqs_reading import Reading

log = logging.getLogger(__name__)
T = TypeVar("T")

_STOP_SECONDS = 10.0


class PollingThread:
    """Polls the queues of one connection in a thread with an event loop of its own."""

    def __init__(self, aws: AwsSettings) -> None:
        self._aws = aws
        self._most_bytes = settings.max_payload_bytes()
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._session: AwsSession
        self._pollings: dict[str, Polling] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._thread = threading.Thread(target=self._run, name="deferrable-ops sqs", daemon=True)

    async def start(self) -> None:
        """Begin, with no queue to poll.

        :raises ConfigurationError: a setting of the connection is wrong.
        """
        self._thread.start()
        try:
            await self._ask(self._open())
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Break off what is under way, and return when nothing is."""
        self._tell(self._stopping.set)
        await asyncio.to_thread(self._thread.join, _STOP_SECONDS)
        if self._thread.is_alive():
            log.warning("The thread that polls SQS (%s) does not end", self._aws.whose)

    def enter(self, queue: Queue, reading: Reading) -> None:
        """Begin to poll a queue for somebody."""
        self._tell(self._enter, queue, reading)

    def leave(self, queue: Queue, reading: Reading) -> None:
        """Poll a queue no more for somebody."""
        self._tell(self._leave, queue, reading)

    async def until_idle(self, queue: Queue) -> None:
        """Return when a queue is not polled any more."""
        await self._ask(self._until_idle(queue))

    async def _open(self) -> None:
        self._session = AwsSession(self._aws)

    def _enter(self, queue: Queue, reading: Reading) -> None:
        source = queue.source
        polling = self._pollings.get(source)
        if polling is None:
            polling = Polling(queue, self._session, self._most_bytes, self._pollings.values())
            self._pollings[source] = polling
        polling.enter(reading)
        if source not in self._tasks:
            self._tasks[source] = asyncio.create_task(self._poll(source, polling))

    def _leave(self, queue: Queue, reading: Reading) -> None:
        polling = self._pollings.get(queue.source)
        if polling is not None:
            polling.leave(reading)

    async def _poll(self, source: str, polling: Polling) -> None:
        try:
            await polling.run()
        except Exception as error:
            log.exception("%s is not polled any more", polling.queue.url)
            polling.fail(
                SqsRefused(f"{polling.queue.url} cannot be polled: {self._aws.without_secrets(error)}")
            )
        finally:
            del self._tasks[source], self._pollings[source]

    async def _until_idle(self, queue: Queue) -> None:
        while task := self._tasks.get(queue.source):
            await asyncio.wait([task])

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._until_stopped())

    async def _until_stopped(self) -> None:
        await self._stopping.wait()
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        if hasattr(self, "_session"):
            await self._session.close()

    def _tell(self, do: Callable[..., object], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(do, *arguments)
        except RuntimeError:
            return  # it has ended

    async def _ask(self, question: Coroutine[Any, Any, T]) -> T | None:
        try:
            asked = asyncio.run_coroutine_threadsafe(question, self._loop)
        except RuntimeError:
            question.close()
            return None  # it has ended
        return await asyncio.wrap_future(asked)

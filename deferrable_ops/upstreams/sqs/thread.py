"""The thread in which queues are polled."""

from __future__ import annotations

import asyncio
import logging

from deferrable_ops import settings
from deferrable_ops.events.queues import Queue
from deferrable_ops.exceptions import SqsRefused
from deferrable_ops.upstreams.aws.connection import AwsSettings
from deferrable_ops.upstreams.aws.thread import AwsThread
from deferrable_ops.upstreams.sqs.poller import Polling
from deferrable_ops.upstreams.sqs.reader import Reading

log = logging.getLogger(__name__)


class PollingThread(AwsThread):
    """Polls the queues of one connection."""

    thread_name = "deferrable-ops sqs"

    def __init__(self, aws: AwsSettings) -> None:
        super().__init__(aws)
        self._most_bytes = settings.max_payload_bytes()
        self._pollings: dict[str, Polling] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def enter(self, queue: Queue, reading: Reading) -> None:
        """Begin to poll a queue for somebody."""
        self._tell(self._enter, queue, reading)

    def leave(self, queue: Queue, reading: Reading) -> None:
        """Poll a queue no more for somebody."""
        self._tell(self._leave, queue, reading)

    async def until_idle(self, queue: Queue) -> None:
        """Return when a queue is not polled any more."""
        waiting = self._until_idle(queue)
        try:
            await self._ask(waiting)
        except RuntimeError:
            waiting.close()  # the thread has ended

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
                SqsRefused(f"{polling.queue.url} cannot be polled: {self._settings.without_secrets(error)}")
            )
        finally:
            del self._tasks[source], self._pollings[source]

    async def _until_idle(self, queue: Queue) -> None:
        while task := self._tasks.get(queue.source):
            await asyncio.wait([task])

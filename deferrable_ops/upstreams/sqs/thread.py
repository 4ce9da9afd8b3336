"""The thread in which all SQS queues of an Airflow connection are polled."""

from __future__ import annotations

import asyncio
import logging

from deferrable_ops import settings
from deferrable_ops.events.queues import Queue
from deferrable_ops.exceptions import SqsRefused
from deferrable_ops.upstreams.aws.connection import AwsSettings
from deferrable_ops.upstreams.aws.thread import AwsThread
from deferrable_ops.upstreams.sqs.poller import PollerTimings, QueuePoller
from deferrable_ops.upstreams.sqs.reader import QueueReader

log = logging.getLogger(__name__)


class PollerThread(AwsThread):
    """Polls the SQS queues of one Airflow connection in a thread.

    :param timings: how long the pollers repeat SQS calls that have failed.
    """

    thread_name = "deferrable-ops sqs"

    def __init__(self, aws: AwsSettings, *, timings: PollerTimings) -> None:
        super().__init__(aws)
        self._timings = timings
        self._max_payload_bytes = settings.max_payload_bytes()
        self._pollers: dict[str, QueuePoller] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def add(self, queue: Queue, reader: QueueReader) -> None:
        """Add a reader to a queue, and start polling the queue."""
        self._call_soon(self._add, queue, reader)

    def remove(self, queue: Queue, reader: QueueReader) -> None:
        """Remove a reader from a queue. If the queue has no other reader, stop polling the queue."""
        self._call_soon(self._remove, queue, reader)

    async def wait_until_idle(self, queue: Queue) -> None:
        """Wait until a queue has no readers, and the last receive call for the queue has ended."""
        waiting = self._wait_until_idle(queue)
        try:
            await self._run_in_thread(waiting)
        except RuntimeError:
            # The thread has ended.
            waiting.close()

    def _add(self, queue: Queue, reader: QueueReader) -> None:
        source = queue.source
        poller = self._pollers.get(source)
        if poller is None:
            poller = QueuePoller(
                queue, self._session, self._max_payload_bytes, self._pollers.values(), timings=self._timings
            )
            self._pollers[source] = poller
        poller.add(reader)
        if source not in self._tasks:
            self._tasks[source] = asyncio.create_task(self._poll(source, poller))

    def _remove(self, queue: Queue, reader: QueueReader) -> None:
        poller = self._pollers.get(queue.source)
        if poller is not None:
            poller.remove(reader)

    async def _poll(self, source: str, poller: QueuePoller) -> None:
        try:
            await poller.run()
        except Exception as error:
            log.exception(
                "The poller of %s failed unexpectedly, so the tasks that wait for this queue fail",
                poller.queue.url,
            )
            poller.fail(
                SqsRefused(
                    f"polling {poller.queue.url} failed unexpectedly: {self._settings.without_secrets(error)}"
                )
            )
        finally:
            del self._tasks[source], self._pollers[source]

    async def _wait_until_idle(self, queue: Queue) -> None:
        while task := self._tasks.get(queue.source):
            await asyncio.wait([task])

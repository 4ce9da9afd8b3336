"""Polls SQS queues. All waits of a process share one long poll per queue.

A message is stored before it is deleted from the queue. So any number of waits can match the message, now or later.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AbstractAsyncContextManager

from deferrable_ops.events import SqsEvent
from deferrable_ops.events.queues import Queue, queue_of
from deferrable_ops.shared import share
from deferrable_ops.upstreams.aws.connection import AwsSettings, aws_settings
from deferrable_ops.upstreams.aws.session import import_aiobotocore
from deferrable_ops.upstreams.connection_extra import UnknownConnection, read_connection
from deferrable_ops.upstreams.sqs.poller import PollerTimings
from deferrable_ops.upstreams.sqs.reader import QueueListener, QueueReader, Store
from deferrable_ops.upstreams.sqs.thread import PollerThread

__all__ = ["PollerTimings", "SqsPollers", "Store", "load_settings", "open_pollers", "use_sqs"]

log = logging.getLogger(__name__)

_DEFAULT = "aws_default"
_DEFAULT_TIMINGS = PollerTimings()


def use_sqs(
    aws_conn_id: str | None, *, timings: PollerTimings = _DEFAULT_TIMINGS
) -> AbstractAsyncContextManager[SqsPollers]:
    """Use the queues that a connection reaches, on the running event loop.

    :param aws_conn_id: an Airflow connection of the type Amazon Web Services. None: the machine's own credentials, as
        botocore finds them. These are also used if `aws_conn_id` is ``aws_default`` and this connection does not exist.
    :param timings: how long failed calls are retried.
    :raises ConfigurationError: the extra ``sqs`` is not installed, or the connection is missing or wrong.
    """

    async def open_shared() -> SqsPollers:
        return await open_pollers(await load_settings(aws_conn_id), timings=timings)

    return share(("sqs", aws_conn_id, timings), open_shared, SqsPollers.close)


async def open_pollers(settings: AwsSettings, *, timings: PollerTimings = _DEFAULT_TIMINGS) -> SqsPollers:
    """Open the pollers of one connection; the caller closes them.

    :param timings: how long failed calls are retried.
    :raises ConfigurationError: the extra ``sqs`` is not installed, or a setting is wrong.
    """
    await asyncio.to_thread(import_aiobotocore)
    thread = PollerThread(settings, timings=timings)
    await thread.start()
    return SqsPollers(thread)


class QueueSubscription:
    """A reader that is active inside its ``with`` statement. The class is small: there are thousands of readers."""

    __slots__ = ("_queue", "_reader", "_sqs")

    def __init__(self, sqs: SqsPollers, queue: Queue, reader: QueueReader) -> None:
        self._sqs = sqs
        self._queue = queue
        self._reader = reader

    def __enter__(self) -> None:
        """Start polling."""
        self._sqs.add_reader(self._queue, self._reader)

    def __exit__(self, *_: object) -> None:
        """Stop polling."""
        self._sqs.remove_reader(self._queue, self._reader)


class SqsPollers:
    """Polls queues with the credentials of one connection."""

    def __init__(self, thread: PollerThread) -> None:
        self._thread = thread
        self._readers: dict[str, int] = {}

    async def close(self) -> None:
        """Stop polling and close all connections. SQS sends unstored messages again after their visibility timeout."""
        await self._thread.stop()

    def subscribe(self, event: SqsEvent, *, store: Store, listener: QueueListener) -> QueueSubscription:
        """Poll a queue for the duration of the returned object's ``with`` statement.

        All messages are stored, even if no wait matches them, and then deleted from the queue. If a poll is in progress
        at the end of the ``with`` statement, the poll is completed.

        :param event: the specification, with rendered templates.
        :param store: stores messages, on this event loop. A message is passed to the function of only one of the
            queue's readers.
        :param listener: receives warnings and permanent failures, on this event loop.
        """
        return QueueSubscription(self, queue_of(event.queue_url), QueueReader(store, listener))

    def add_reader(self, queue: Queue, reader: QueueReader) -> None:
        """Start polling a queue for a reader."""
        self._readers[queue.source] = self._readers.get(queue.source, 0) + 1
        self._thread.add(queue, reader)

    def remove_reader(self, queue: Queue, reader: QueueReader) -> None:
        """Stop polling a queue for a reader."""
        self._readers[queue.source] -= 1
        self._thread.remove(queue, reader)

    def has_readers(self, event: SqsEvent) -> bool:
        """Return whether any reader waits for messages of a queue."""
        return self._readers.get(event.source, 0) > 0

    async def wait_until_idle(self, event: SqsEvent) -> None:
        """Wait until a queue has no readers and its last poll has ended.

        Closing the pollers earlier would cancel this poll. SQS may already have sent messages to the poll, and would
        hide these messages until their visibility timeout ends.
        """
        await self._thread.wait_until_idle(queue_of(event.queue_url))


async def load_settings(conn_id: str | None) -> AwsSettings:
    """Return the AWS settings of an Airflow connection.

    :param conn_id: the id of the connection. None: the machine's own credentials.
    :raises ConfigurationError: the connection is missing, or one of its settings is wrong.
    """
    if conn_id is None:
        return AwsSettings()
    try:
        return aws_settings(*await read_connection(conn_id))
    except UnknownConnection:
        if conn_id != _DEFAULT:
            raise
    log.info("There is no connection %s; using the machine's own AWS credentials", conn_id)
    return AwsSettings()

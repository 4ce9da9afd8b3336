"""Polls SQS queues. All waits in a process share one long poll for each queue.

A message is stored in the inbox before it is deleted from the queue. Therefore any number of current and future waits
can match the message.
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
    """Use the SQS pollers of an Airflow connection on the running event loop.

    :param aws_conn_id: the id of an Airflow connection of the type Amazon Web Services. If `aws_conn_id` is None, the
        machine's own credentials are used, as botocore finds them. The machine's own credentials are also used if
        `aws_conn_id` is ``aws_default`` and this connection does not exist.
    :param timings: how long failed SQS calls are retried.
    :raises ConfigurationError: if the extra ``sqs`` is not installed, or the Airflow connection is missing or invalid.
    """

    async def open_shared() -> SqsPollers:
        return await open_pollers(await load_settings(aws_conn_id), timings=timings)

    return share(("sqs", aws_conn_id, timings), open_shared, SqsPollers.close)


async def open_pollers(settings: AwsSettings, *, timings: PollerTimings = _DEFAULT_TIMINGS) -> SqsPollers:
    """Open the SQS pollers of one Airflow connection. The caller must close the pollers.

    :param timings: how long failed SQS calls are retried.
    :raises ConfigurationError: if the extra ``sqs`` is not installed, or a setting of the connection is invalid.
    """
    await asyncio.to_thread(import_aiobotocore)
    thread = PollerThread(settings, timings=timings)
    await thread.start()
    return SqsPollers(thread)


class QueueSubscription:
    """A reader that is active inside its ``with`` statement.

    The class has few fields, to save memory for thousands of readers.
    """

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
    """Polls SQS queues with the credentials of one Airflow connection."""

    def __init__(self, thread: PollerThread) -> None:
        self._thread = thread
        self._readers: dict[str, int] = {}

    async def close(self) -> None:
        """Stop polling and close all connections.

        Messages that were not stored reappear in the queue after their visibility timeout.
        """
        await self._thread.stop()

    def subscribe(self, event: SqsEvent, *, store: Store, listener: QueueListener) -> QueueSubscription:
        """Poll a queue for the duration of the returned object's ``with`` statement.

        All messages of the queue are stored in the inbox, even if no wait matches them, and are then deleted from the
        queue. A poll that is in progress at the end of the ``with`` statement is completed.

        :param event: the event specification, after its templates were rendered.
        :param store: a function that stores messages, on this event loop. If a queue has several readers, only one
            reader's function receives a message.
        :param listener: an object that receives the queue's warnings and permanent failures, on this event loop.
        """
        return QueueSubscription(self, queue_of(event.queue_url), QueueReader(store, listener))

    def add_reader(self, queue: Queue, reader: QueueReader) -> None:
        """Add a reader to a queue, and start polling the queue."""
        self._readers[queue.source] = self._readers.get(queue.source, 0) + 1
        self._thread.add(queue, reader)

    def remove_reader(self, queue: Queue, reader: QueueReader) -> None:
        """Remove a reader from a queue, and stop polling the queue if it has no other readers."""
        self._readers[queue.source] -= 1
        self._thread.remove(queue, reader)

    def has_readers(self, event: SqsEvent) -> bool:
        """Return whether a queue has readers."""
        return self._readers.get(event.source, 0) > 0

    async def wait_until_idle(self, event: SqsEvent) -> None:
        """Wait until a queue has no readers and its last poll has ended.

        Closing the pollers earlier would cancel the queue's last poll. SQS may already have sent messages to this poll,
        and would hide these messages until their visibility timeout ends.
        """
        await self._thread.wait_until_idle(queue_of(event.queue_url))


async def load_settings(conn_id: str | None) -> AwsSettings:
    """Return the AWS settings of an Airflow connection.

    :param conn_id: the id of the Airflow connection. If `conn_id` is None, the settings use the machine's own
        credentials.
    :raises ConfigurationError: if the Airflow connection is missing, or one of its settings is invalid.
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

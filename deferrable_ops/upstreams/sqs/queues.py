"""Polls SQS queues. All waiting tasks in a process that read the same queue share one long poll of this queue.

A message is stored in the inbox before it is deleted from the queue. So one message can match several tasks, even
tasks that begin to wait later. A match does not remove the message from the inbox.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AbstractAsyncContextManager

from deferrable_ops import settings
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
    """Return a context manager for the SQS pollers of an Airflow connection on the running event loop.

    :param aws_conn_id: the id of an Airflow connection of the type Amazon Web Services. If `aws_conn_id` is None,
        botocore searches for credentials on this machine. The id ``aws_default`` has the same effect
        if Airflow has no connection with this id.
    :param timings: how long the pollers repeat SQS calls that have failed.
    :raises ConfigurationError: if the extra ``sqs`` is not installed, or if the Airflow connection is missing or
        invalid.
    """

    async def open_shared() -> SqsPollers:
        return await open_pollers(await load_settings(aws_conn_id), timings=timings)

    return share(("sqs", aws_conn_id, timings), open_shared, SqsPollers.close)


async def open_pollers(settings: AwsSettings, *, timings: PollerTimings = _DEFAULT_TIMINGS) -> SqsPollers:
    """Create the object that polls SQS queues with one Airflow connection, and start its thread. The caller must close
    this object.

    :param timings: how long the pollers repeat SQS calls that have failed.
    :raises ConfigurationError: if the extra ``sqs`` is not installed, or if a setting of the Airflow connection is
        invalid.
    """
    await asyncio.to_thread(import_aiobotocore)
    thread = PollerThread(settings, timings=timings)
    await thread.start()
    return SqsPollers(thread)


class QueueSubscription:
    """A subscription to a queue, which is active inside its ``with`` block.

    The class has few fields, because thousands of objects can exist.
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
        """Stop polling the queues, and close all connections to SQS.

        If a message was not stored, SQS delivers it again after its visibility timeout.
        """
        await self._thread.stop()

    def subscribe(self, event: SqsEvent, *, store: Store, listener: QueueListener) -> QueueSubscription:
        """Return a subscription to a queue. The queue is polled inside the ``with`` block of the subscription.

        All messages of the queue are stored in the inbox, even if no task waits for them, and are then deleted from the
        queue. If a receive call is in progress at the end of the ``with`` block, the messages that it returns are still
        stored.

        :param event: the event specification, with its templates already rendered.
        :param store: a function that stores messages in the inbox, on this event loop. If a queue has several readers,
            only the function of one reader is called for each message.
        :param listener: an object whose methods are called on this event loop, with warnings and with the error that
            ends the subscription.
        """
        return QueueSubscription(self, queue_of(event.queue_url), QueueReader(store, listener))

    def add_reader(self, queue: Queue, reader: QueueReader) -> None:
        """Add a reader to a queue, and start polling the queue."""
        self._readers[queue.source] = self._readers.get(queue.source, 0) + 1
        self._thread.add(queue, reader)

    def remove_reader(self, queue: Queue, reader: QueueReader) -> None:
        """Remove a reader from a queue. If the queue has no other reader, stop polling the queue."""
        self._readers[queue.source] -= 1
        self._thread.remove(queue, reader)

    def has_readers(self, event: SqsEvent) -> bool:
        """Return whether a queue has readers."""
        return self._readers.get(event.source, 0) > 0

    async def wait_until_idle(self, event: SqsEvent) -> None:
        """Wait until a queue has no readers, and the last receive call for the queue has ended.

        If the pollers are closed earlier, the last receive call is cancelled. SQS may already have sent messages
        for this call, and would then hide these messages until their visibility timeout ends.
        """
        await self._thread.wait_until_idle(queue_of(event.queue_url))


async def load_settings(conn_id: str | None) -> AwsSettings:
    """Return the settings for AWS that an Airflow connection contains.

    :param conn_id: the id of the Airflow connection. If `conn_id` is None, botocore searches for credentials on this
        machine.
    :raises ConfigurationError: if the Airflow connection is missing, or if one of its settings is invalid.
    """
    if conn_id is None:
        return AwsSettings()
    try:
        return aws_settings(*await read_connection(conn_id))
    except UnknownConnection as unknown:
        if conn_id != _DEFAULT:
            raise
        if settings.team() is not None:
            # The team may have this connection, although a triggerer cannot read it.
            raise UnknownConnection(
                f"{unknown}; set aws_conn_id=None to use the machine's own AWS credentials"
            ) from None
    log.info("There is no connection %s; using the machine's own AWS credentials", conn_id)
    return AwsSettings()

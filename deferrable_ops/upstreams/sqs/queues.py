"""SQS: one long poll per queue for all waits of a process.

A message is first stored and then deleted, so it is there for any number of waits, now and later.
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
from deferrable_ops.upstreams.sqs.reader import QueueListener, QueueReader, Store
from deferrable_ops.upstreams.sqs.thread import PollerThread

__all__ = ["SqsPollers", "Store", "load_settings", "open_pollers", "use_sqs"]

log = logging.getLogger(__name__)

_DEFAULT = "aws_default"


def use_sqs(aws_conn_id: str | None) -> AbstractAsyncContextManager[SqsPollers]:
    """Use the queues that a connection reaches, on the running event loop.

    :param aws_conn_id: an Airflow connection of the type Amazon Web Services; None: the machine's own credentials, as
        botocore finds them. They are used for ``aws_default`` too, when there is no such connection.
    :raises ConfigurationError: the extra ``sqs`` or the connection is missing, or a setting of it is wrong.
    """

    async def open_shared() -> SqsPollers:
        return await open_pollers(await load_settings(aws_conn_id))

    return share(("sqs", aws_conn_id), open_shared, SqsPollers.close)


async def open_pollers(settings: AwsSettings) -> SqsPollers:
    """Return what polls the queues that these settings reach, for whoever closes it.

    :raises ConfigurationError: the extra ``sqs`` is missing, or a setting is wrong.
    """
    await asyncio.to_thread(import_aiobotocore)
    thread = PollerThread(settings)
    await thread.start()
    return SqsPollers(thread)


class QueueSubscription:
    """A reader, while its ``with`` statement lasts. There are thousands, and a generator for each would be large."""

    __slots__ = ("_queue", "_reader", "_sqs")

    def __init__(self, sqs: SqsPollers, queue: Queue, reader: QueueReader) -> None:
        self._sqs = sqs
        self._queue = queue
        self._reader = reader

    def __enter__(self) -> None:
        """Begin to poll."""
        self._sqs.add_reader(self._queue, self._reader)

    def __exit__(self, *_: object) -> None:
        """Poll no more."""
        self._sqs.remove_reader(self._queue, self._reader)


class SqsPollers:
    """The queues that are polled with one connection."""

    def __init__(self, thread: PollerThread) -> None:
        self._thread = thread
        self._readers: dict[str, int] = {}

    async def close(self) -> None:
        """Stop, and close all connections. What SQS has sent meanwhile comes again after its visibility timeout."""
        await self._thread.stop()

    def subscribe(self, event: SqsEvent, *, store: Store, listener: QueueListener) -> QueueSubscription:
        """Poll a queue, while the ``with`` statement of what is returned lasts, and until the poll is over that is then
        under way.

        All that comes is stored, matched or not, and then deleted.

        :param event: with its templates rendered.
        :param store: stores what comes, on this event loop. That of any present reader is used for all of a queue.
        :param listener: is told of trouble, on this event loop.
        """
        return QueueSubscription(self, queue_of(event.queue_url), QueueReader(store, listener))

    def add_reader(self, queue: Queue, reader: QueueReader) -> None:
        """Begin to poll a queue for somebody."""
        self._readers[queue.source] = self._readers.get(queue.source, 0) + 1
        self._thread.add(queue, reader)

    def remove_reader(self, queue: Queue, reader: QueueReader) -> None:
        """Poll a queue no more for somebody."""
        self._readers[queue.source] -= 1
        self._thread.remove(queue, reader)

    def has_readers(self, event: SqsEvent) -> bool:
        """Return whether somebody waits for messages of a queue."""
        return self._readers.get(event.source, 0) > 0

    async def wait_until_idle(self, event: SqsEvent) -> None:
        """Return when a queue is not polled any more: nobody needs it, and the last poll is over.

        Who closes this earlier breaks that poll off. SQS may have sent a message to it, and hides that for a while.
        """
        await self._thread.wait_until_idle(queue_of(event.queue_url))


async def load_settings(conn_id: str | None) -> AwsSettings:
    """Return how AWS is reached by an Airflow connection.

    :param conn_id: None: with the machine's own credentials.
    :raises ConfigurationError: there is no such connection, or a setting of it is wrong.
    """
    if conn_id is None:
        return AwsSettings()
    try:
        return aws_settings(*await read_connection(conn_id))
    except UnknownConnection:
        if conn_id != _DEFAULT:
            raise
    log.info("There is no connection %s: AWS is asked with the machine's own credentials", conn_id)
    return AwsSettings()

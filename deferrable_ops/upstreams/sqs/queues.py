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
from deferrable_ops.upstreams.aws.connection import AwsSettings, settings_of
from deferrable_ops.upstreams.aws.session import import_aiobotocore
from deferrable_ops.upstreams.connection_extra import UnknownConnection, read_connection
from deferrable_ops.upstreams.sqs.reader import Reading, Store, Told
from deferrable_ops.upstreams.sqs.thread import PollingThread

__all__ = ["Sqs", "Store", "load_settings", "open_sqs", "use_sqs"]

log = logging.getLogger(__name__)

_DEFAULT = "aws_default"


def use_sqs(aws_conn_id: str | None) -> AbstractAsyncContextManager[Sqs]:
    """Use the queues that a connection reaches, on the running event loop.

    :param aws_conn_id: an Airflow connection of the type Amazon Web Services; None: the machine's own credentials, as
        botocore finds them. They are used for ``aws_default`` too, when there is no such connection.
    :raises ConfigurationError: the extra ``sqs`` or the connection is missing, or a setting of it is wrong.
    """

    async def open_shared() -> Sqs:
        return await open_sqs(await load_settings(aws_conn_id))

    return share(("sqs", aws_conn_id), open_shared, Sqs.close)


async def open_sqs(settings: AwsSettings) -> Sqs:
    """Return what polls the queues that these settings reach, for whoever closes it.

    :raises ConfigurationError: the extra ``sqs`` is missing, or a setting is wrong.
    """
    await asyncio.to_thread(import_aiobotocore)
    thread = PollingThread(settings)
    await thread.start()
    return Sqs(thread)


class Use:
    """A reading, while its ``with`` statement lasts. There are thousands, and a generator for each would be large."""

    __slots__ = ("_queue", "_reading", "_sqs")

    def __init__(self, sqs: Sqs, queue: Queue, reading: Reading) -> None:
        self._sqs = sqs
        self._queue = queue
        self._reading = reading

    def __enter__(self) -> None:
        """Begin to poll."""
        self._sqs.enter(self._queue, self._reading)

    def __exit__(self, *_: object) -> None:
        """Poll no more."""
        self._sqs.leave(self._queue, self._reading)


class Sqs:
    """The queues that are polled with one connection."""

    def __init__(self, thread: PollingThread) -> None:
        self._thread = thread
        self._readers: dict[str, int] = {}

    async def close(self) -> None:
        """Stop, and close all connections. What SQS has sent meanwhile comes again after its visibility timeout."""
        await self._thread.stop()

    def read(self, event: SqsEvent, *, store: Store, told: Told) -> Use:
        """Poll a queue, while the ``with`` statement of what is returned lasts, and until the poll is over that is then
        under way.

        All that comes is stored, matched or not, and then deleted.

        :param event: with its templates rendered.
        :param store: stores what comes, on this event loop. That of any present reader is used for all of a queue.
        :param told: is told of trouble, on this event loop.
        """
        return Use(self, queue_of(event.queue_url), Reading(store, told))

    def enter(self, queue: Queue, reading: Reading) -> None:
        """Begin to poll a queue for somebody."""
        self._readers[queue.source] = self._readers.get(queue.source, 0) + 1
        self._thread.enter(queue, reading)

    def leave(self, queue: Queue, reading: Reading) -> None:
        """Poll a queue no more for somebody."""
        self._readers[queue.source] -= 1
        self._thread.leave(queue, reading)

    def is_read(self, event: SqsEvent) -> bool:
        """Return whether somebody waits for messages of a queue."""
        return self._readers.get(event.source, 0) > 0

    async def until_idle(self, event: SqsEvent) -> None:
        """Return when a queue is not polled any more: nobody needs it, and the last poll is over.

        Who closes this earlier breaks that poll off. SQS may have sent a message to it, and hides that for a while.
        """
        await self._thread.until_idle(queue_of(event.queue_url))


async def load_settings(conn_id: str | None) -> AwsSettings:
    """Return how AWS is reached by an Airflow connection.

    :param conn_id: None: with the machine's own credentials.
    :raises ConfigurationError: there is no such connection, or a setting of it is wrong.
    """
    if conn_id is None:
        return AwsSettings()
    try:
        return settings_of(*await read_connection(conn_id))
    except UnknownConnection:
        if conn_id != _DEFAULT:
            raise
    log.info("There is no connection %s: AWS is asked with the machine's own credentials", conn_id)
    return AwsSettings()

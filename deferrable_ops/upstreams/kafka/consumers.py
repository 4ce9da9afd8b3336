"""Kafka: one live consumer, and at most one that catches up, per cluster for all waits of a process.

They belong to no group and commit nothing to Kafka: the log itself is the memory, and where a wait goes on is stored
together with what was found for it.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager

from deferrable_ops.events import KafkaEvent
from deferrable_ops.shared import share
from deferrable_ops.upstreams.connection_extra import read_connection
from deferrable_ops.upstreams.kafka.client import import_aiokafka
from deferrable_ops.upstreams.kafka.connection import ClusterSettings, kafka_settings, tls_context
from deferrable_ops.upstreams.kafka.positions import Offsets
from deferrable_ops.upstreams.kafka.subscriptions import Batch, Subscription, SubscriptionListener
from deferrable_ops.upstreams.kafka.thread import ConsumerThread

__all__ = [
    "Batch",
    "KafkaConsumers",
    "Offsets",
    "Store",
    "SubscriptionListener",
    "load_settings",
    "use_kafka",
]

Store = Callable[[Batch], Awaitable[object]]
"""Stores a batch in one transaction, and returns once it is committed. What it raises is tried again. A batch may come
again after a restart: its events are listener by their dedupe keys."""


def use_kafka(kafka_conn_id: str, store: Store) -> AbstractAsyncContextManager[KafkaConsumers]:
    """Use the consumers of a cluster on the running event loop.

    :param kafka_conn_id: an Airflow connection of the type Kafka.
    :param store: stores what is found, on the running event loop; that of the connection's first user is used for all.
    :raises ConfigurationError: the extra ``kafka`` or the connection is missing, or a setting of it is wrong.
    """

    async def open_kafka() -> KafkaConsumers:
        settings = await load_settings(kafka_conn_id)
        return await open_consumers(settings, store)

    return share(("kafka", kafka_conn_id), open_kafka, KafkaConsumers.close)


async def open_consumers(settings: ClusterSettings, store: Store) -> KafkaConsumers:
    """Return the consumers of a cluster, for whoever closes them.

    :raises ConfigurationError: the extra ``kafka`` is missing, or a certificate cannot be read.
    """
    await asyncio.to_thread(import_aiokafka, settings.mechanism)
    kafka = KafkaConsumers(settings, await asyncio.to_thread(tls_context, settings), store)
    kafka.open()
    return kafka


class KafkaConsumers:
    """The consumers of one cluster. They connect once there is something to read."""

    def __init__(self, settings: ClusterSettings, tls: ssl.SSLContext | None, store: Store) -> None:
        self._thread = ConsumerThread(settings, tls, store)

    def open(self) -> None:
        """Begin, with nobody to read for."""
        self._thread.start()

    async def close(self) -> None:
        """Stop, and close all connections."""
        await self._thread.stop()

    def subscribe(
        self,
        key: str,
        events: Sequence[KafkaEvent],
        *,
        since: float,
        offsets: Mapping[str, int] | None = None,
        listener: SubscriptionListener,
    ) -> ScopedSubscription:
        """Read a topic for one wait, while the ``with`` statement of what is returned lasts.

        What it asks for is stored, in the order of each partition; a record may come to be stored again only after a
        restart, or when its topic was made again.

        :param key: tells it from others of this topic in :attr:`Batch.resume_offsets`.
        :param events: of one topic, with their templates rendered. A record is asked for when it is any of them.
        :param since: seconds since the epoch; records whose timestamp is older are not its own.
        :param offsets: what :attr:`Batch.resume_offsets` said of this key when it was last read for; None begins at `since`.
        :param listener: is listener of trouble, on this event loop.
        """
        use = ScopedSubscription(key, events, since=since, offsets=offsets, listener=listener)
        use.thread = self._thread
        return use


class ScopedSubscription(Subscription):
    """A subscription that lasts as long as its ``with`` statement: one object, because there are thousands.

    :ivar thread: reads.
    """

    __slots__ = ("thread",)

    thread: ConsumerThread

    def __enter__(self) -> None:
        """Begin to read."""
        self.thread.add(self)

    def __exit__(self, *_: object) -> None:
        """Read no more."""
        self.thread.remove(self)


async def load_settings(conn_id: str) -> ClusterSettings:
    """Return how the cluster of an Airflow connection is reached.

    :raises ConfigurationError: there is no such connection, or a setting of it is wrong.
    """
    return kafka_settings(*await read_connection(conn_id))

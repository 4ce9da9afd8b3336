"""The Kafka consumers that all waits in a process share. Each cluster has one live and at most one catch-up consumer.

The consumers belong to no consumer group and commit no offsets to Kafka. The inbox stores the offsets at which a wait
resumes, in the same transaction as the matched events.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager

from deferrable_ops.events import KafkaEvent
from deferrable_ops.shared import share
from deferrable_ops.upstreams.connection_extra import read_connection
from deferrable_ops.upstreams.kafka.client import DEFAULT_TIMINGS, ConsumerTimings, import_aiokafka
from deferrable_ops.upstreams.kafka.connection import ClusterSettings, kafka_settings, tls_context
from deferrable_ops.upstreams.kafka.positions import Offsets
from deferrable_ops.upstreams.kafka.subscriptions import Batch, Subscription, SubscriptionListener
from deferrable_ops.upstreams.kafka.thread import ConsumerThread

__all__ = [
    "Batch",
    "ConsumerTimings",
    "KafkaConsumers",
    "Offsets",
    "Store",
    "SubscriptionListener",
    "load_settings",
    "use_kafka",
]

Store = Callable[[Batch], Awaitable[object]]
"""A function that stores a batch in one transaction and returns after the commit.

If the function raises an error, the function is called again. After a restart, a batch may be stored again. The inbox
discards repeated events by their dedupe keys.
"""


def use_kafka(kafka_conn_id: str, store: Store) -> AbstractAsyncContextManager[KafkaConsumers]:
    """Use the consumers of a Kafka cluster on the running event loop.

    :param kafka_conn_id: the id of an Airflow connection of the type Kafka.
    :param store: a function that stores matched events, on the running event loop. All callers with the same connection
        share the function that the first caller passed.
    :raises ConfigurationError: if the extra ``kafka`` is not installed, or the Airflow connection is missing or
        invalid.
    """

    async def open_kafka() -> KafkaConsumers:
        settings = await load_settings(kafka_conn_id)
        return await open_consumers(settings, store)

    return share(("kafka", kafka_conn_id), open_kafka, KafkaConsumers.close)


async def open_consumers(
    settings: ClusterSettings, store: Store, *, timings: ConsumerTimings = DEFAULT_TIMINGS
) -> KafkaConsumers:
    """Open the consumers of a Kafka cluster. The caller must close the consumers.

    :param timings: the intervals and timeouts of the consumers.
    :raises ConfigurationError: if the extra ``kafka`` is not installed, or a certificate cannot be read.
    """
    await asyncio.to_thread(import_aiokafka, settings.mechanism)
    tls = await asyncio.to_thread(tls_context, settings)
    kafka = KafkaConsumers(settings, tls, store, timings=timings)
    kafka.open()
    return kafka


class KafkaConsumers:
    """The consumers of one Kafka cluster. The consumers connect when the first subscription starts."""

    def __init__(
        self, settings: ClusterSettings, tls: ssl.SSLContext | None, store: Store, *, timings: ConsumerTimings
    ) -> None:
        self._thread = ConsumerThread(settings, tls, store, timings=timings)

    def open(self) -> None:
        """Start the consumer thread without subscriptions."""
        self._thread.start()

    async def close(self) -> None:
        """Stop the consumers and close all connections."""
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
        """Subscribe one wait to a topic, for the duration of the returned object's ``with`` statement.

        Matching records of a partition are stored in the order of their offsets. The same record is passed to `store`
        again only after a restart, or after its topic was recreated.

        :param key: the key of the subscription in :attr:`Batch.resume_offsets`.
        :param events: event specifications for one topic, after their templates were rendered. A record must match at
            least one specification.
        :param since: a time in seconds since the epoch. Records with an earlier timestamp do not match.
        :param offsets: the last :attr:`Batch.resume_offsets` of this `key`. If `offsets` is None, reading starts at
            `since`.
        :param listener: an object that receives the subscription's warnings and permanent failures, on this event loop.
        """
        subscription = ScopedSubscription(key, events, since=since, offsets=offsets, listener=listener)
        subscription.thread = self._thread
        return subscription


class ScopedSubscription(Subscription):
    """A subscription that is active inside its ``with`` statement.

    The subscription itself is the context manager, to save memory for thousands of subscriptions.

    :ivar thread: the thread that runs the consumers.
    """

    __slots__ = ("thread",)

    thread: ConsumerThread

    def __enter__(self) -> None:
        """Start reading."""
        self.thread.add(self)

    def __exit__(self, *_: object) -> None:
        """Stop reading."""
        self.thread.remove(self)


async def load_settings(conn_id: str) -> ClusterSettings:
    """Return the settings of an Airflow connection of the type Kafka.

    :raises ConfigurationError: if the Airflow connection is missing, or one of its settings is invalid.
    """
    return kafka_settings(*await read_connection(conn_id))

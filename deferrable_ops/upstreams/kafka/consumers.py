"""The Kafka consumers that all waiting tasks in a process share. Each cluster has one consumer of new records (the
live consumer), and at most one consumer of older records (the catch-up consumer).

The consumers belong to no consumer group and commit no offsets to Kafka. The inbox stores the offsets from which each
subscription continues, in the same transaction as the matched events.
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
    """Return a context manager for the consumers of a Kafka cluster on the running event loop.

    :param kafka_conn_id: the id of an Airflow connection of the type Kafka.
    :param store: a function that stores matched events in the inbox, on the running event loop. All callers with the
        same connection use the function of the first caller.
    :raises ConfigurationError: if the extra ``kafka`` is not installed, or if the Airflow connection is missing or
        invalid.
    """

    async def open_kafka() -> KafkaConsumers:
        settings = await load_settings(kafka_conn_id)
        return await open_consumers(settings, store)

    return share(("kafka", kafka_conn_id), open_kafka, KafkaConsumers.close)


async def open_consumers(
    settings: ClusterSettings, store: Store, *, timings: ConsumerTimings = DEFAULT_TIMINGS
) -> KafkaConsumers:
    """Create the object that runs the consumers of a Kafka cluster, and start its thread. The caller must close this
    object.

    :param timings: the intervals and timeouts of these consumers.
    :raises ConfigurationError: if the extra ``kafka`` is not installed, or if a certificate cannot be read.
    """
    await asyncio.to_thread(import_aiokafka, settings.mechanism)
    tls = await asyncio.to_thread(tls_context, settings)
    kafka = KafkaConsumers(settings, tls, store, timings=timings)
    kafka.open()
    return kafka


class KafkaConsumers:
    """The consumers of one Kafka cluster. The consumers connect to the cluster when the first subscription starts."""

    def __init__(
        self, settings: ClusterSettings, tls: ssl.SSLContext | None, store: Store, *, timings: ConsumerTimings
    ) -> None:
        self._thread = ConsumerThread(settings, tls, store, timings=timings)

    def open(self) -> None:
        """Start the thread of the consumers, without subscriptions."""
        self._thread.start()

    async def close(self) -> None:
        """Stop the consumers, and close all connections to Kafka."""
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
        """Return a subscription of one waiting task to a topic. The subscription is active inside its ``with`` block.

        The matching records of a partition are stored in the order of their offsets. A record is passed to `store` a
        second time only in two cases: the triggerer was restarted, or the topic was deleted and created again.

        :param key: the key under which :attr:`Batch.resume_offsets` contains the offsets of this subscription.
        :param events: event specifications for one topic, with their templates already rendered. A record matches if it
            matches at least one of the specifications.
        :param since: the time, in seconds since the epoch, from which records are read. A record with an earlier
            timestamp does not match.
        :param offsets: the offsets from which reading continues: the newest offsets that :attr:`Batch.resume_offsets`
            contained for this `key`. If `offsets` is None, reading begins with the records at the time `since`.
        :param listener: an object whose methods are called on this event loop, with warnings and with the error that
            ends the subscription.
        """
        subscription = ScopedSubscription(key, events, since=since, offsets=offsets, listener=listener)
        subscription.thread = self._thread
        return subscription


class ScopedSubscription(Subscription):
    """A subscription that is active inside its ``with`` block.

    There is no separate context manager, to save memory when thousands of subscriptions exist.

    :ivar thread: the thread that runs the consumers of the cluster.
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
    """Return the settings that an Airflow connection of the type Kafka contains.

    :raises ConfigurationError: if the Airflow connection is missing, or if one of its settings is invalid.
    """
    return kafka_settings(*await read_connection(conn_id))

"""The producers of a Kafka cluster, and whether what one of them published was committed."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import Final

from deferrable_ops.exceptions import KafkaUnavailable
from deferrable_ops.shared import share
from deferrable_ops.upstreams.kafka.client import Cluster, import_aiokafka, topic_read_refusal
from deferrable_ops.upstreams.kafka.connection import ClusterSettings, tls_context
from deferrable_ops.upstreams.kafka.consumers import load_settings
from deferrable_ops.upstreams.kafka.transactional_producer import Producer, Record, RecordPosition

__all__ = ["Producer", "ProducerPool", "Record", "RecordPosition", "use_producer_pool"]

log = logging.getLogger(__name__)

_MAX_OPEN_PRODUCERS: Final = 8  # producers of a cluster and process
_POLL_TIMEOUT_MS: Final = 200  # milliseconds
_MAX_POLL_RECORDS: Final = 500

_closing: set[asyncio.Task[None]] = set()  # asyncio itself keeps no strong reference to a task


def use_producer_pool(kafka_conn_id: str) -> AbstractAsyncContextManager[ProducerPool]:
    """Use the producers of a cluster on the running event loop.

    :param kafka_conn_id: an Airflow connection of the type Kafka.
    :raises ConfigurationError: the extra ``kafka`` or the connection is missing, or a setting of it is wrong.
    """

    async def open_producers() -> ProducerPool:
        return await open_producer_pool(await load_settings(kafka_conn_id))

    async def close_producers(_: ProducerPool) -> None:
        """Nothing is kept open between two tasks."""

    return share(("kafka producers", kafka_conn_id), open_producers, close_producers)


async def open_producer_pool(settings: ClusterSettings) -> ProducerPool:
    """Return the producers of a cluster.

    :raises ConfigurationError: the extra ``kafka`` is missing, or a certificate cannot be read.
    """
    await asyncio.to_thread(import_aiokafka, settings.mechanism)
    return ProducerPool(settings, await asyncio.to_thread(tls_context, settings))


class ProducerPool:
    """The producers of one cluster, of which at most eight are open at once.

    Each task has one of its own: Kafka tells by a producer who may commit.
    """

    def __init__(self, settings: ClusterSettings, tls: ssl.SSLContext | None) -> None:
        self.settings = settings
        self._tls = tls
        self._slots = asyncio.Semaphore(_MAX_OPEN_PRODUCERS)

    @asynccontextmanager
    async def open(self, topic: str, transactional_id: str | None) -> AsyncIterator[Producer]:
        """Open a producer for one topic.

        :param transactional_id: who it is. What another producer of this id has not committed is aborted, and can never
            be committed any more. None: a producer whose records count at once.
        :raises KafkaRefused: the cluster refuses us, or there is no such topic.
        :raises KafkaUnavailable: it does not answer now.
        """
        async with self._slots:
            cluster = Cluster(self.settings, self._tls)
            producer = Producer(cluster, topic, transactional_id)
            try:
                await producer.start()
                yield producer
            finally:
                closing = asyncio.create_task(producer.stop())
                _closing.add(closing)
                closing.add_done_callback(_closing.discard)
                await asyncio.shield(closing)  # Airflow cancels a trigger again and again while it leaves

    async def find(
        self, topic: str, position: RecordPosition, header: tuple[str, bytes]
    ) -> RecordPosition | None:
        """Return where a record with this header was committed to a partition, at this position or later; None: nowhere.

        While transactions are open that began before, that is not known, and waited for.

        :raises KafkaRefused: the topic may not be read.
        :raises KafkaUnavailable: no broker answers now.
        """
        from aiokafka import TopicPartition
        from aiokafka.errors import KafkaError as AioKafkaError
        from aiokafka.errors import OffsetOutOfRangeError, TopicAuthorizationFailedError

        cluster = Cluster(replace(self.settings, isolation="read_committed"), self._tls)
        consumer = await cluster.open_consumer("publish")
        partition = TopicPartition(topic, position.partition)
        try:
            consumer.assign([partition])
            consumer.seek(partition, position.offset)
            while True:
                try:
                    fetched = await consumer.getmany(
                        partition, timeout_ms=_POLL_TIMEOUT_MS, max_records=_MAX_POLL_RECORDS
                    )
                except OffsetOutOfRangeError:
                    log.warning("%s lost records that this attempt may have published", partition)
                    consumer.seek(partition, (await consumer.beginning_offsets([partition]))[partition])
                    continue
                for record in fetched.get(partition, ()):
                    if header in record.headers:
                        return RecordPosition(record.partition, record.offset)
                end = consumer.highwater(partition)
                if end is not None and await consumer.position(partition) >= end:
                    return None
        except TopicAuthorizationFailedError:
            raise topic_read_refusal(self.settings, topic) from None
        except AioKafkaError as error:
            raise KafkaUnavailable(
                f"{partition} of the connection {self.settings.conn_id!r} cannot be searched for what an earlier run "
                f"has published: {self.settings.without_secrets(error)}"
            ) from None
        finally:
            await consumer.stop()

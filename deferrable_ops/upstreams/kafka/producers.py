"""Opens producers for a Kafka cluster. This module also finds records that an earlier producer committed."""

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
from deferrable_ops.upstreams.kafka.transactional_producer import (
    ABORT_SECONDS,
    Producer,
    Record,
    RecordPosition,
)

__all__ = ["Producer", "ProducerPool", "Record", "RecordPosition", "use_producer_pool"]

log = logging.getLogger(__name__)

# At most this many producers of a cluster are open at the same time in a process.
_MAX_OPEN_PRODUCERS: Final = 8
_POLL_TIMEOUT_MS: Final = 200
_MAX_POLL_RECORDS: Final = 500

# The set keeps references to the tasks, because asyncio keeps only weak references.
_closing: set[asyncio.Task[None]] = set()


def use_producer_pool(kafka_conn_id: str) -> AbstractAsyncContextManager[ProducerPool]:
    """Return a context manager for the producer pool of a Kafka cluster on the running event loop.

    :param kafka_conn_id: the id of an Airflow connection of the type Kafka.
    :raises ConfigurationError: if the extra ``kafka`` is not installed, or if the Airflow connection is missing or
        invalid.
    """

    async def open_producers() -> ProducerPool:
        return await open_producer_pool(await load_settings(kafka_conn_id))

    async def close_producers(_: ProducerPool) -> None:
        """Do nothing, because each task has already closed its own producer."""

    return share(("kafka producers", kafka_conn_id), open_producers, close_producers)


async def open_producer_pool(settings: ClusterSettings) -> ProducerPool:
    """Return a pool that opens producers for a Kafka cluster.

    :raises ConfigurationError: if the extra ``kafka`` is not installed, or if a certificate cannot be read.
    """
    await asyncio.to_thread(import_aiokafka, settings.mechanism)
    return ProducerPool(settings, await asyncio.to_thread(tls_context, settings))


class ProducerPool:
    """Opens producers for one cluster. At most eight producers are open at the same time.

    Each task needs its own producer, because each task has its own transactional id, and a producer can have only one.

    :param abort_timeout: how many seconds to wait, when a producer is closed, until its open transaction is aborted.
    """

    def __init__(
        self,
        settings: ClusterSettings,
        tls: ssl.SSLContext | None,
        *,
        abort_timeout: float = ABORT_SECONDS,
    ) -> None:
        self.settings = settings
        self._tls = tls
        self._abort_timeout = abort_timeout
        self._slots = asyncio.Semaphore(_MAX_OPEN_PRODUCERS)

    @asynccontextmanager
    async def open(self, topic: str, transactional_id: str | None) -> AsyncIterator[Producer]:
        """Open a producer for one topic, and close it at the end of the ``with`` block.

        :param transactional_id: Kafka's transactional id. If an earlier producer used the same id, its open transaction
            is aborted, and it can no longer commit a transaction. If `transactional_id` is None, the producer does not
            use transactions, and consumers can read each record immediately.
        :raises KafkaRefused: if the cluster refuses the connection permanently, or if the topic does not exist.
        :raises KafkaUnavailable: if the cluster does not respond now.
        """
        async with self._slots:
            cluster = Cluster(self.settings, self._tls)
            producer = Producer(cluster, topic, transactional_id, abort_timeout=self._abort_timeout)
            try:
                await producer.start()
                yield producer
            finally:
                closing = asyncio.create_task(producer.stop())
                _closing.add(closing)
                closing.add_done_callback(_closing.discard)
                # Use shield, because Airflow may cancel the trigger again while the producer is closing.
                await asyncio.shield(closing)

    async def find(
        self, topic: str, position: RecordPosition, header: tuple[str, bytes]
    ) -> RecordPosition | None:
        """Search a partition for a committed record with this header, and return the position of the record; None if
        there is no such record.

        The search begins at `position`, and ends at the end of the partition. If a transaction that began earlier is
        still open, the search waits until it has ended.

        :raises KafkaRefused: if the Kafka user has no permission to read the topic.
        :raises KafkaUnavailable: if no broker responds now.
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
                    log.warning(
                        "Kafka has deleted old records of %s. If an earlier attempt of this task published some of "
                        "these records, they may be published twice",
                        partition,
                    )
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
                f"cannot search {partition} of the connection {self.settings.conn_id!r} for the records of an earlier "
                f"run: {self.settings.without_secrets(error)}"
            ) from None
        finally:
            await consumer.stop()

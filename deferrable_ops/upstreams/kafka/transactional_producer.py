"""A producer for one Kafka topic. It can use transactions."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from deferrable_ops.exceptions import KafkaError, KafkaRefused, KafkaUnavailable, LaunchRefused
from deferrable_ops.outages import kafka_source
from deferrable_ops.upstreams.kafka.backoff_client import backoff_client
from deferrable_ops.upstreams.kafka.client import Cluster
from deferrable_ops.upstreams.kafka.producer_errors import (
    NO_COORDINATOR,
    topic_write_refusal,
    translate_error,
)

if TYPE_CHECKING:
    from aiokafka import AIOKafkaProducer

log = logging.getLogger(__name__)

_REQUEST_SECONDS: Final = 20.0
_OPEN_SECONDS: Final = 30.0
# How long to wait for a missing topic. Some brokers learn of a new topic later than others.
_MISSING_TOPIC_SECONDS: Final = 15.0
_TOPIC_POLL_SECONDS: Final = 0.5
# transaction.timeout.ms: Kafka aborts a transaction that stays open for longer than this.
_TRANSACTION_SECONDS: Final = 60.0
ABORT_SECONDS: Final = 3.0
_STOP_SECONDS: Final = 5.0
# max.request.size of the producer. The topic has its own limit, max.message.bytes.
_MAX_REQUEST_BYTES: Final = 64 * 1_048_576


@dataclass(frozen=True, slots=True)
class Record:
    """A record to append to a Kafka topic.

    :param partition: the number of the partition to which the record is appended. If ``partition`` is None, the key of
        the record determines the partition. If the record also has no key, the client chooses a partition.
    """

    value: bytes | None
    key: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    partition: int | None = None


class RecordPosition(NamedTuple):
    """The partition number and the offset of a record."""

    partition: int
    offset: int


class Producer:
    """Appends records to one Kafka topic. A retried request does not append a record twice. Records for the same
    partition keep their order.

    :param abort_timeout: how many seconds :meth:`stop` waits until an open transaction is aborted.
    """

    def __init__(
        self,
        cluster: Cluster,
        topic: str,
        transactional_id: str | None,
        *,
        abort_timeout: float = ABORT_SECONDS,
    ) -> None:
        self._cluster = cluster
        self._settings = cluster.settings
        self._topic = topic
        self._transactional_id = transactional_id
        self._abort_timeout = abort_timeout
        self._producer: AIOKafkaProducer = self._create_producer()
        self._has_open_transaction = False

    async def start(self) -> None:
        """Connect to the cluster. After this call, an earlier producer with the same transactional id can no longer
        commit a transaction.
        """
        from aiokafka.errors import KafkaError as AioKafkaError

        try:
            async with asyncio.timeout(_OPEN_SECONDS):
                await self._producer.start()
                await self._wait_for_topic()
        except TimeoutError:
            raise await self._unavailable(
                NO_COORDINATOR if self._transactional_id else "no broker answered in time"
            ) from None
        except (AioKafkaError, OSError) as error:
            raise await self._translate(error) from None

    async def stop(self) -> None:
        """Abort the open transaction, if there is one, and close all connections."""
        from aiokafka.errors import KafkaError as AioKafkaError
        from aiokafka.errors import ProducerClosed

        producer: Any = self._producer
        if self._has_open_transaction:
            with suppress(AioKafkaError, AssertionError, TimeoutError):
                await asyncio.wait_for(producer.abort_transaction(), self._abort_timeout)

        async def closed(*_: Any) -> None:
            raise ProducerClosed

        # Make the remaining batches and the search for the coordinator fail. Otherwise, aiokafka would retry both
        # forever.
        left = producer._message_accumulator
        left.fail_all(ProducerClosed())
        for batch in itertools.chain(left._pending_batches, *left._batches.values()):
            _mark_retrieved(batch._drain_waiter)
        producer.client.coordinator_lookup = closed
        try:
            await asyncio.wait_for(producer.stop(), _STOP_SECONDS)
        except (AioKafkaError, TimeoutError) as error:
            log.debug(
                "Cannot close a producer of the connection %s cleanly: %r", self._settings.conn_id, error
            )
            await producer.client.close()
        _mark_retrieved(producer._txn_manager.wait_for_transaction_end())

    @property
    def partitions(self) -> set[int]:
        """The partition numbers of the topic."""
        return set(self._producer.client.cluster.partitions_for_topic(self._topic) or ())

    async def begin(self) -> None:
        """Begin a transaction."""
        await self._producer.begin_transaction()
        self._has_open_transaction = True

    async def append(self, records: Sequence[Record]) -> list[RecordPosition]:
        """Append records to the topic, and return the partition and offset of each record. Inside a transaction,
        consumers can read the records only after the commit.

        :raises LaunchRefused: if the cluster rejects a record permanently, for example because the record is too large.
        :raises KafkaRefused: if the cluster refuses the login, or a permission is missing.
        :raises KafkaUnavailable: if some records were not appended, or if it is unknown whether they were appended.
        """
        from aiokafka.errors import KafkaError as AioKafkaError

        sent: list[asyncio.Future[Any]] = []
        try:
            for record in records:
                future = await self._send(record)
                sent.append(future)
            await asyncio.wait(sent)
            return [RecordPosition(one.partition, one.offset) for one in (future.result() for future in sent)]
        except AioKafkaError as error:
            failed = (index for index, future in enumerate(sent) if future.done() and future.exception())
            index = next(failed, len(sent))
            raise await self._translate(error, records[index], index) from None

    async def commit(self) -> None:
        """Commit the transaction.

        :raises KafkaUnavailable: if it is unknown whether Kafka has committed the transaction.
        """
        from aiokafka.errors import KafkaError as AioKafkaError

        try:
            async with asyncio.timeout(_TRANSACTION_SECONDS):
                await self._producer.commit_transaction()
        except TimeoutError:
            raise await self._unavailable("the commit of the transaction was not confirmed") from None
        # aiokafka raises AssertionError if its sender has failed.
        except (AioKafkaError, AssertionError) as error:
            raise await self._translate(error) from None
        self._has_open_transaction = False

    async def _send(self, record: Record) -> asyncio.Future[Any]:
        sent: asyncio.Future[Any] = await self._producer.send(
            self._topic,
            value=record.value,
            key=record.key,
            partition=record.partition,
            headers=list(record.headers),
        )
        # If the caller is cancelled, it does not await the future, and asyncio would log the future's error.
        sent.add_done_callback(_mark_retrieved)
        return sent

    async def _translate(
        self, error: BaseException, record: Record | None = None, index: int = 0
    ) -> KafkaError | LaunchRefused:
        if isinstance(error, KafkaError):
            return error
        found = translate_error(self._settings, self._topic, error, _size(record), index)
        is_final = isinstance(found, (KafkaRefused, LaunchRefused))
        return found if is_final else await self._unavailable(found)

    async def _unavailable(self, problem: object) -> KafkaError:
        """Return KafkaRefused if the cluster refuses the connection permanently; otherwise return an error for
        a retry.
        """
        refused = self._cluster.refused or await self._cluster.find_refusal()
        if refused is not None:
            return refused
        if isinstance(problem, KafkaError):
            return problem
        where = f"the cluster of the connection {self._settings.conn_id!r} ({self._settings.servers})"
        return KafkaUnavailable(f"{where} does not respond as expected: {problem}")

    def _create_producer(self) -> AIOKafkaProducer:
        import aiokafka

        client_id = f"{self._settings.client_id}-publish"
        transactional: dict[str, Any] = {}
        if self._transactional_id is not None:
            transactional = {
                "transactional_id": self._transactional_id,
                "transaction_timeout_ms": int(_TRANSACTION_SECONDS * 1_000),
            }
        producer: Any = aiokafka.AIOKafkaProducer(
            acks="all",
            enable_idempotence=True,
            max_request_size=_MAX_REQUEST_BYTES,
            request_timeout_ms=int(_REQUEST_SECONDS * 1_000),
            client_id=client_id,
            **transactional,
        )
        client = backoff_client(
            lambda: {self._topic},
            self._cluster.broker_refusal,
            self._note_refusal,
            kafka_source(self._settings.conn_id),
            bootstrap_servers=self._settings.servers,
            request_timeout_ms=int(_REQUEST_SECONDS * 1_000),
            **{**self._cluster.connection, "client_id": client_id},
        )
        producer.client = producer._sender.client = client
        producer._metadata = producer._message_accumulator._cluster = client.cluster
        return producer

    def _note_refusal(self, refused: KafkaRefused) -> None:
        self._cluster.refused = refused

    async def _wait_for_topic(self) -> None:
        """Wait until the client knows the partitions of the topic."""
        client: Any = self._producer.client
        await client.add_topic(self._topic)
        missing_since: float | None = None
        loop = asyncio.get_running_loop()
        while not self.partitions:
            if self._topic in client.cluster.unauthorized_topics:
                raise topic_write_refusal(self._settings, self._topic)
            has_answered = await client.force_metadata_update()
            missing_since = (missing_since or loop.time()) if has_answered else None
            if missing_since is not None and loop.time() - missing_since > _MISSING_TOPIC_SECONDS:
                raise KafkaRefused(
                    f"there is no topic {self._topic!r} in the cluster of the connection "
                    f"{self._settings.conn_id!r}; check its name, or create it first"
                )
            await asyncio.sleep(_TOPIC_POLL_SECONDS)


def _size(record: Record | None) -> int:
    return 0 if record is None else len(record.value or b"") + len(record.key or b"")


def _mark_retrieved(future: asyncio.Future[Any] | None) -> None:
    """Mark the exception of a future as retrieved, so that asyncio does not log this exception."""
    if future is not None and future.done() and not future.cancelled():
        future.exception()

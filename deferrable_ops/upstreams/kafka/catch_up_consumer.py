"""The catch-up consumer reads older records. It begins at the start offset of each subscription, and ends where the
consumer of new records (the live consumer) reads.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from deferrable_ops.exceptions import KafkaUnavailable
from deferrable_ops.upstreams.kafka.client import Cluster, is_broken, topic_read_refusal
from deferrable_ops.upstreams.kafka.partition_discovery import bounds_of, lost_records_warning
from deferrable_ops.upstreams.kafka.positions import CatchUpGroup, Partition, Topic
from deferrable_ops.upstreams.kafka.subscriptions import Matches, Subscription, Subscriptions, make_batch

if TYPE_CHECKING:
    from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

_POLL_TIMEOUT_MS = 200
_MAX_POLL_RECORDS = 200
# The pause after each poll. It releases the interpreter lock (GIL), which the Triggerer's event loop also needs.
_YIELD_SECONDS = 0.001
# An idle consumer stays open for this long, because the next wait may start soon.
_LINGER_SECONDS = 5.0


class CatchUpConsumer:
    """Reads older records while at least one subscription has not yet reached the offset of the consumer of new records
    (the live consumer).
    """

    def __init__(self, cluster: Cluster, subscriptions: Subscriptions) -> None:
        self._cluster = cluster
        self._subscriptions = subscriptions
        self._positions: dict[TopicPartition, int] = {}
        self._switched_at: dict[TopicPartition, float] = {}

    def is_needed(self) -> bool:
        """Return whether at least one subscription has not yet reached the offset of the consumer of new records."""
        topics = self._subscriptions.topics.values()
        return any(partition.behind for topic in topics for partition in topic.partitions.values())

    async def read(self) -> None:
        """Read until every subscription has reached the offset of the consumer of new records.

        Then wait 5 s for new subscriptions, and close the consumer if there are none.

        :raises KafkaRefused: if the cluster refuses the connection permanently.
        """
        consumer = await self._cluster.open_consumer("catch-up")
        self._positions = {}
        idle_since: float | None = None
        try:
            while True:
                if is_broken(consumer):
                    raise KafkaUnavailable(
                        "the Kafka consumer for old records (catch-up consumer) stopped unexpectedly"
                    )
                if self._assign(consumer):
                    idle_since = None
                    await self._poll(consumer)
                    continue
                idle_since = idle_since or time.monotonic()
                if time.monotonic() - idle_since > _LINGER_SECONDS:
                    return
                await self._subscriptions.wait_for_change(_LINGER_SECONDS)
        finally:
            for topic in self._subscriptions.topics.values():
                for partition in topic.partitions.values():
                    partition.catch_up = None
            await consumer.stop()

    def _assign(self, consumer: AIOKafkaConsumer) -> bool:
        """Choose the partitions and offsets that the consumer must read, and assign, seek, pause and resume these
        partitions.

        Return False if the consumer has no partition to read.
        """
        wanted = self._choose_offsets()
        if not set(wanted) <= set(self._positions):
            consumer.assign(list(wanted))
            self._positions = {}
        paused = consumer.paused() if self._positions else set()
        for tp, offset in wanted.items():
            if self._positions.get(tp) != offset:
                consumer.seek(tp, offset)
                self._positions[tp] = offset
                self._switched_at[tp] = time.monotonic()
            if tp in paused:
                consumer.resume(tp)
        for tp in set(self._positions) - set(wanted) - paused:
            consumer.pause(tp)
        return bool(wanted)

    def _choose_offsets(self) -> dict[TopicPartition, int]:
        from aiokafka import TopicPartition

        wanted = {}
        now, switch_interval = time.monotonic(), self._cluster.timings.switch_interval
        for topic in self._subscriptions.topics.values():
            for number, partition in topic.partitions.items():
                if not partition.behind:
                    partition.catch_up = None
                    continue
                tp = TopicPartition(topic.name, number)
                may_switch = now - self._switched_at.get(tp, now) > switch_interval
                start = partition.choose_next_start(may_switch)
                if may_switch:
                    self._switched_at[tp] = now
                if start is not None:
                    partition.catch_up = wanted[tp] = start
        return wanted

    async def _poll(self, consumer: AIOKafkaConsumer) -> None:
        from aiokafka.errors import OffsetOutOfRangeError, TopicAuthorizationFailedError

        try:
            fetched = await consumer.getmany(timeout_ms=_POLL_TIMEOUT_MS, max_records=_MAX_POLL_RECORDS)
        except OffsetOutOfRangeError as error:
            for tp, offset in error.args[0].items():
                await self._reset_offset(consumer, tp, offset)
            return
        except TopicAuthorizationFailedError as error:
            name = str(error.args[0])
            self._subscriptions.fail(
                self._subscriptions.for_topic(name), topic_read_refusal(self._cluster.settings, name)
            )
            return
        # The position can advance although no records arrive, for example past transaction markers.
        ends = {tp: await consumer.position(tp) for tp in self._positions}
        for name in {tp.topic for tp, end in ends.items() if end > self._positions[tp]}:
            topic = self._subscriptions.topics.get(name)
            if topic is not None:
                of_topic = {tp: end for tp, end in ends.items() if tp.topic == name}
                await self._process(topic, fetched, of_topic)
        self._positions.update(ends)
        await asyncio.sleep(_YIELD_SECONDS)

    async def _process(
        self,
        topic: Topic[Subscription],
        fetched: Mapping[TopicPartition, Sequence[ConsumerRecord[Any, Any]]],
        ends: dict[TopicPartition, int],
    ) -> None:
        found: Matches = []
        read: dict[int, tuple[Partition[Subscription], list[CatchUpGroup[Subscription]], int]] = {}
        for tp, end in ends.items():
            partition, begin = topic.partitions.get(tp.partition), self._positions[tp]
            if partition is None or partition.catch_up != begin or end <= begin:
                continue
            covered = partition.close_groups(begin, end)
            found += self._subscriptions.match(
                topic, partition, fetched.get(tp, ()), _is_covered_from(partition, begin)
            )
            read[tp.partition] = partition, covered, end
        if found:
            stored = {number: (covered, end) for number, (_, covered, end) in read.items()}
            await self._subscriptions.store(
                make_batch(topic, found, lambda subscription: topic.offsets(subscription, covered=stored))
            )
        for partition, covered, end in read.values():
            if partition.advance(covered, end):
                self._subscriptions.changed()
            partition.catch_up = end

    async def _reset_offset(self, consumer: AIOKafkaConsumer, tp: TopicPartition, offset: int) -> None:
        """If the next offset of a subscription no longer exists, continue at the first offset of the partition."""
        bounds = (await bounds_of(consumer, [tp]))[tp.partition]
        topic = self._subscriptions.topics.get(tp.topic)
        partition = topic.partitions.get(tp.partition) if topic else None
        if partition is None:
            return
        for subscription, group in list(partition.behind.items()):
            if not bounds.beginning <= group.offset <= bounds.end:
                name, beginning = f"{tp.topic}/{tp.partition}", bounds.beginning
                subscription.warn(lost_records_warning(name, group.offset, beginning, f"offset {beginning}"))
                partition.add(subscription, bounds.beginning)
        self._subscriptions.changed()


def _is_covered_from(partition: Partition[Subscription], begin: int) -> Callable[[Subscription, int], bool]:
    return lambda subscription, offset: partition.is_covered(subscription, begin, offset)

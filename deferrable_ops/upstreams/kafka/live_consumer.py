"""The live consumer reads the new records of all subscribed topics. The catch-up consumer reads the older records."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from deferrable_ops.exceptions import KafkaRefused, KafkaUnavailable
from deferrable_ops.upstreams.kafka.client import Cluster, is_broken, topic_read_refusal
from deferrable_ops.upstreams.kafka.partition_discovery import (
    PartitionDiscovery,
    bounds_of,
    lost_records_warning,
)
from deferrable_ops.upstreams.kafka.positions import Partition
from deferrable_ops.upstreams.kafka.subscriptions import Matches, Subscription, Subscriptions, make_batch

if TYPE_CHECKING:
    from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

# The timeout is short, so that changed subscriptions are noticed soon.
_POLL_TIMEOUT_MS = 200
_IDLE_SECONDS = 1.0
_MAX_POLL_RECORDS = 200
# The pause after a full poll. It releases the interpreter lock (GIL), which the Triggerer's event loop also needs.
_YIELD_SECONDS = 0.001


class LiveConsumer:
    """Reads the new records of all subscribed topics of one cluster."""

    def __init__(self, cluster: Cluster, subscriptions: Subscriptions) -> None:
        self._cluster = cluster
        self._subscriptions = subscriptions
        self._version = -1
        self._positions: dict[TopicPartition, int] = {}

    async def read(self) -> None:
        """Read records until there is no subscription left.

        :raises KafkaRefused: if the cluster refuses the connection permanently.
        """
        consumer = await self._cluster.open_consumer("live")
        discovery = PartitionDiscovery(self._cluster, consumer, self._subscriptions)
        self._version, self._positions = -1, {}
        for topic in self._subscriptions.topics.values():
            for partition in topic.partitions.values():
                # Records with matches that were not stored yet are read again.
                partition.move_live(partition.stored)
        try:
            while self._subscriptions:
                self._update_assignment(consumer, discovery)
                if self._cluster.refused is not None:
                    refused, self._cluster.refused = self._cluster.refused, None
                    raise refused
                if is_broken(consumer):
                    raise KafkaUnavailable(
                        "the Kafka consumer for new records (live consumer) stopped unexpectedly"
                    )
                if not self._positions:
                    await self._subscriptions.wait_for_change(_IDLE_SECONDS)
                    continue
                await self._poll(consumer)
        finally:
            try:
                await discovery.close()
            finally:
                await consumer.stop()

    def _update_assignment(self, consumer: AIOKafkaConsumer, discovery: PartitionDiscovery) -> None:
        if self._version == self._subscriptions.version:
            return
        from aiokafka import TopicPartition

        self._version = self._subscriptions.version
        discovery.update()
        wanted = {
            TopicPartition(topic.name, number): (partition, topic.has_live(partition))
            for topic in self._subscriptions.topics.values()
            for number, partition in topic.partitions.items()
        }
        if set(wanted) != set(self._positions):
            consumer.assign(list(wanted))
            self._positions = {}
        paused = consumer.paused() if wanted else set()
        for tp, (partition, has_live) in wanted.items():
            if self._positions.get(tp) != partition.live:
                consumer.seek(tp, partition.live)
                self._positions[tp] = partition.live
            if has_live and tp in paused:
                consumer.resume(tp)
            elif not has_live and tp not in paused:
                # No subscription of this partition has caught up yet.
                consumer.pause(tp)

    async def _poll(self, consumer: AIOKafkaConsumer) -> None:
        from aiokafka.errors import OffsetOutOfRangeError, TopicAuthorizationFailedError

        try:
            fetched = await consumer.getmany(timeout_ms=_POLL_TIMEOUT_MS, max_records=_MAX_POLL_RECORDS)
        except OffsetOutOfRangeError as error:
            for tp, offset in error.args[0].items():
                await self._reset_offset(consumer, tp, offset)
            return
        except TopicAuthorizationFailedError as error:
            self._fail(str(error.args[0]))
            return
        by_topic: dict[str, dict[TopicPartition, list[ConsumerRecord[Any, Any]]]] = {}
        for tp, records in fetched.items():
            by_topic.setdefault(tp.topic, {})[tp] = records
        await asyncio.gather(*(self._process(consumer, name, records) for name, records in by_topic.items()))
        if sum(map(len, fetched.values())) >= _MAX_POLL_RECORDS:
            await asyncio.sleep(_YIELD_SECONDS)

    async def _process(
        self,
        consumer: AIOKafkaConsumer,
        name: str,
        fetched: dict[TopicPartition, list[ConsumerRecord[Any, Any]]],
    ) -> None:
        topic = self._subscriptions.topics.get(name)
        if topic is None:
            return
        found: Matches = []
        read: dict[int, tuple[Partition[Subscription], int]] = {}
        for tp, records in fetched.items():
            partition = topic.partitions.get(tp.partition)
            if partition is None:
                continue
            end = max(await consumer.position(tp), records[-1].offset + 1)
            new = [record for record in records if record.offset >= partition.live]
            found += self._subscriptions.match(topic, partition, new, partition.is_live)
            # From now on, a subscription that has caught up switches to the live consumer at `end` or later.
            self._positions[tp] = end
            partition.live = max(partition.live, end)
            read[tp.partition] = partition, partition.live
        if found:
            live = {number: end for number, (_, end) in read.items()}
            await self._subscriptions.store(
                make_batch(topic, found, lambda subscription: topic.offsets(subscription, live=live))
            )
        for partition, end in read.values():
            # The position may have been moved while the batch was stored.
            if partition.live == end:
                partition.stored = end

    async def _reset_offset(self, consumer: AIOKafkaConsumer, tp: TopicPartition, offset: int) -> None:
        """Continue at the first offset of the partition, because the next records were deleted or the topic was created
        again.
        """
        bounds = (await bounds_of(consumer, [tp]))[tp.partition]
        topic = self._subscriptions.topics.get(tp.topic)
        partition = topic.partitions.get(tp.partition) if topic else None
        if topic is None or partition is None:
            return
        name, beginning = f"{tp.topic}/{tp.partition}", bounds.beginning
        warning = lost_records_warning(name, offset, beginning, f"offset {beginning}")
        for subscription in topic.subscriptions:
            if subscription not in partition.behind:
                partition.skip_until.pop(subscription, None)
                subscription.warn(warning)
        partition.move_live(bounds.beginning)
        self._subscriptions.changed()

    def _fail(self, name: str) -> None:
        refused: KafkaRefused = topic_read_refusal(self._cluster.settings, name)
        self._subscriptions.fail(self._subscriptions.for_topic(name), refused)

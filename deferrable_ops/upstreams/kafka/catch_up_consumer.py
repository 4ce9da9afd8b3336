"""The catch-up consumer: what lies between where readings begin and where the live consumer is, for all of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from deferrable_ops.exceptions import KafkaUnavailable
from deferrable_ops.upstreams.kafka.client import Cluster, is_broken, refusal_of_topic
from deferrable_ops.upstreams.kafka.live_consumer import lost
from deferrable_ops.upstreams.kafka.partition_discovery import bounds_of
from deferrable_ops.upstreams.kafka.positions import Group, Partition, Topic
from deferrable_ops.upstreams.kafka.subscription import Reading
from deferrable_ops.upstreams.kafka.subscriptions import Found, Readings, batch_of

if TYPE_CHECKING:
    from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

_LOOK_EVERY = 200  # milliseconds
_RECORDS_AT_ONCE = 200
_BREATH = 0.001  # for the Triggerer's event loop, which needs the same interpreter lock
_TURN_SECONDS = 1.0
_LINGER_SECONDS = 5.0  # the next wait may begin soon


class CatchUp:
    """Reads what is past, while somebody is behind."""

    def __init__(self, cluster: Cluster, readings: Readings) -> None:
        self._cluster = cluster
        self._readings = readings
        self._at: dict[TopicPartition, int] = {}
        self._turned: dict[TopicPartition, float] = {}

    def is_needed(self) -> bool:
        """Return whether anybody is behind."""
        topics = self._readings.topics.values()
        return any(partition.behind for topic in topics for partition in topic.partitions.values())

    async def read(self) -> None:
        """Read until nobody is behind, and a little longer.

        :raises KafkaRefused: the cluster refuses us.
        """
        consumer = await self._cluster.open_consumer("catch-up")
        self._at = {}
        idle_since: float | None = None
        try:
            while True:
                if is_broken(consumer):
                    raise KafkaUnavailable("the client has broken down")
                if self._go_to(consumer):
                    idle_since = None
                    await self._read_on(consumer)
                    continue
                idle_since = idle_since or time.monotonic()
                if time.monotonic() - idle_since > _LINGER_SECONDS:
                    return
                await self._readings.wait_for_change(_LINGER_SECONDS)
        finally:
            for topic in self._readings.topics.values():
                for partition in topic.partitions.values():
                    partition.catch_up = None
            await consumer.stop()

    def _go_to(self, consumer: AIOKafkaConsumer) -> bool:
        """Let the consumer stand where it is needed; return whether it is needed anywhere."""
        wanted = self._wanted()
        if not set(wanted) <= set(self._at):
            consumer.assign(list(wanted))
            self._at = {}
        paused = consumer.paused() if self._at else set()
        for place, offset in wanted.items():
            if self._at.get(place) != offset:
                consumer.seek(place, offset)
                self._at[place] = offset
                self._turned[place] = time.monotonic()
            if place in paused:
                consumer.resume(place)
        for place in set(self._at) - set(wanted) - paused:
            consumer.pause(place)
        return bool(wanted)

    def _wanted(self) -> dict[TopicPartition, int]:
        from aiokafka import TopicPartition

        wanted = {}
        now = time.monotonic()
        for topic in self._readings.topics.values():
            for number, partition in topic.partitions.items():
                if not partition.behind:
                    partition.catch_up = None
                    continue
                place = TopicPartition(topic.name, number)
                may_turn = now - self._turned.get(place, now) > _TURN_SECONDS
                start = partition.next_start(may_turn)
                if may_turn:
                    self._turned[place] = now
                if start is not None:
                    partition.catch_up = wanted[place] = start
        return wanted

    async def _read_on(self, consumer: AIOKafkaConsumer) -> None:
        from aiokafka.errors import OffsetOutOfRangeError, TopicAuthorizationFailedError

        try:
            fetched = await consumer.getmany(timeout_ms=_LOOK_EVERY, max_records=_RECORDS_AT_ONCE)
        except OffsetOutOfRangeError as error:
            for place, offset in error.args[0].items():
                await self._relocate(consumer, place, offset)
            return
        except TopicAuthorizationFailedError as error:
            name = str(error.args[0])
            self._readings.fail(self._readings.of_topic(name), refusal_of_topic(self._cluster.settings, name))
            return
        # Where nothing came, the offset may have moved all the same: over the marks of transactions, say.
        ends = {place: await consumer.position(place) for place in self._at}
        for name in {place.topic for place, end in ends.items() if end > self._at[place]}:
            topic = self._readings.topics.get(name)
            if topic is not None:
                of_topic = {place: end for place, end in ends.items() if place.topic == name}
                await self._take(topic, fetched, of_topic)
        self._at.update(ends)
        await asyncio.sleep(_BREATH)

    async def _take(
        self,
        topic: Topic[Reading],
        fetched: Mapping[TopicPartition, Sequence[ConsumerRecord[Any, Any]]],
        ends: dict[TopicPartition, int],
    ) -> None:
        found: Found = []
        read: dict[int, tuple[Partition[Reading], list[Group[Reading]], int]] = {}
        for place, end in ends.items():
            partition, begin = topic.partitions.get(place.partition), self._at[place]
            if partition is None or partition.catch_up != begin or end <= begin:
                continue
            carried = partition.carried(begin, end)
            found += self._readings.find(topic, partition, fetched.get(place, ()), _takers(partition, begin))
            read[place.partition] = partition, carried, end
        if found:
            stored = {number: (carried, end) for number, (_, carried, end) in read.items()}
            await self._readings.store(
                batch_of(topic, found, lambda reading: topic.offsets(reading, carried=stored))
            )
        for partition, carried, end in read.values():
            if partition.caught_up(carried, end):
                self._readings.changed()
            partition.catch_up = end

    async def _relocate(self, consumer: AIOKafkaConsumer, place: TopicPartition, offset: int) -> None:
        """Let those who need what is not there go on where the log begins."""
        bounds = (await bounds_of(consumer, [place]))[place.partition]
        topic = self._readings.topics.get(place.topic)
        partition = topic.partitions.get(place.partition) if topic else None
        if partition is None:
            return
        for reading, group in list(partition.behind.items()):
            if not bounds.beginning <= group.offset <= bounds.end:
                reading.warn(lost(place, group.offset, bounds.beginning))
                partition.enter(reading, bounds.beginning)
        self._readings.changed()


def _takers(partition: Partition[Reading], begin: int) -> Callable[[Reading, int], bool]:
    return lambda reading, offset: partition.is_carried(reading, begin, offset)

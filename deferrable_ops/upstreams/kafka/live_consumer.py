"""The live consumer: what arrives in all topics that are read, for everyone who has caught up."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from deferrable_ops.exceptions import KafkaRefused, KafkaUnavailable
from deferrable_ops.upstreams.kafka.client import Cluster, is_broken, refusal_of_topic
from deferrable_ops.upstreams.kafka.partition_discovery import Places, bounds_of
from deferrable_ops.upstreams.kafka.positions import Partition
from deferrable_ops.upstreams.kafka.subscription import Reading
from deferrable_ops.upstreams.kafka.subscriptions import Found, Readings, batch_of

if TYPE_CHECKING:
    from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

_LOOK_EVERY = 200  # milliseconds, for whether something has changed
_IDLE_SECONDS = 1.0
_RECORDS_AT_ONCE = 200
_BREATH = 0.001  # for the Triggerer's event loop, which needs the same interpreter lock


class Live:
    """Reads at the end of all topics."""

    def __init__(self, cluster: Cluster, readings: Readings) -> None:
        self._cluster = cluster
        self._readings = readings
        self._version = -1
        self._at: dict[TopicPartition, int] = {}  # where the consumer stands

    async def read(self) -> None:
        """Read until there is nobody left to read for.

        :raises KafkaRefused: the cluster refuses us.
        """
        consumer = await self._cluster.open_consumer("live")
        places = Places(self._cluster, consumer, self._readings)
        self._version, self._at = -1, {}
        for topic in self._readings.topics.values():
            for partition in topic.partitions.values():
                partition.move_live(partition.stored)  # what was found and not stored is found again
        try:
            while self._readings:
                self._follow_changes(consumer, places)
                if self._cluster.refused is not None:
                    refused, self._cluster.refused = self._cluster.refused, None
                    raise refused
                if is_broken(consumer):
                    raise KafkaUnavailable("the client has broken down")
                if not self._at:
                    await self._readings.wait_for_change(_IDLE_SECONDS)
                    continue
                await self._read_on(consumer)
        finally:
            try:
                await places.close()
            finally:
                await consumer.stop()

    def _follow_changes(self, consumer: AIOKafkaConsumer, places: Places) -> None:
        if self._version == self._readings.version:
            return
        from aiokafka import TopicPartition

        self._version = self._readings.version
        places.keep()
        wanted = {
            TopicPartition(topic.name, number): (partition, topic.has_live(partition))
            for topic in self._readings.topics.values()
            for number, partition in topic.partitions.items()
        }
        if set(wanted) != set(self._at):
            consumer.assign(list(wanted))
            self._at = {}
        paused = consumer.paused() if wanted else set()
        for place, (partition, has_live) in wanted.items():
            if self._at.get(place) != partition.live:
                consumer.seek(place, partition.live)
                self._at[place] = partition.live
            if has_live and place in paused:
                consumer.resume(place)
            elif not has_live and place not in paused:
                consumer.pause(place)  # until somebody has caught up

    async def _read_on(self, consumer: AIOKafkaConsumer) -> None:
        from aiokafka.errors import OffsetOutOfRangeError, TopicAuthorizationFailedError

        try:
            fetched = await consumer.getmany(timeout_ms=_LOOK_EVERY, max_records=_RECORDS_AT_ONCE)
        except OffsetOutOfRangeError as error:
            for place, offset in error.args[0].items():
                await self._relocate(consumer, place, offset)
            return
        except TopicAuthorizationFailedError as error:
            self._fail(str(error.args[0]))
            return
        by_topic: dict[str, dict[TopicPartition, list[ConsumerRecord[Any, Any]]]] = {}
        for place, records in fetched.items():
            by_topic.setdefault(place.topic, {})[place] = records
        await asyncio.gather(*(self._take(consumer, name, records) for name, records in by_topic.items()))
        if sum(map(len, fetched.values())) >= _RECORDS_AT_ONCE:
            await asyncio.sleep(_BREATH)

    async def _take(
        self,
        consumer: AIOKafkaConsumer,
        name: str,
        fetched: dict[TopicPartition, list[ConsumerRecord[Any, Any]]],
    ) -> None:
        topic = self._readings.topics.get(name)
        if topic is None:
            return
        found: Found = []
        read: dict[int, tuple[Partition[Reading], int]] = {}
        for place, records in fetched.items():
            partition = topic.partitions.get(place.partition)
            if partition is None:
                continue
            end = max(await consumer.position(place), records[-1].offset + 1)
            new = [record for record in records if record.offset >= partition.live]
            found += self._readings.find(topic, partition, new, partition.is_live)
            # From here on nobody changes over to a smaller offset.
            self._at[place] = end
            partition.live = max(partition.live, end)
            read[place.partition] = partition, partition.live
        if found:
            live = {number: end for number, (_, end) in read.items()}
            await self._readings.store(
                batch_of(topic, found, lambda reading: topic.offsets(reading, live=live))
            )
        for partition, end in read.values():
            if partition.live == end:  # or it was moved meanwhile
                partition.stored = end

    async def _relocate(self, consumer: AIOKafkaConsumer, place: TopicPartition, offset: int) -> None:
        """Go on where the log begins: it has lost what came next, or is another log than it was."""
        bounds = (await bounds_of(consumer, [place]))[place.partition]
        topic = self._readings.topics.get(place.topic)
        partition = topic.partitions.get(place.partition) if topic else None
        if topic is None or partition is None:
            return
        for reading in topic.readings:
            if reading not in partition.behind:
                partition.floors.pop(reading, None)
                reading.warn(lost(place, offset, bounds.beginning))
        partition.move_live(bounds.beginning)
        self._readings.changed()

    def _fail(self, name: str) -> None:
        refused: KafkaRefused = refusal_of_topic(self._cluster.settings, name)
        self._readings.fail(self._readings.of_topic(name), refused)


def lost(place: TopicPartition, offset: int, beginning: int) -> str:
    """Return what to warn of when an offset is not there."""
    if offset < beginning:
        return (
            f"records of {place.topic}/{place.partition} from offset {offset} to {beginning} were deleted before they "
            "were read here; keep them longer (retention.ms, retention.bytes)"
        )
    return (
        f"{place.topic}/{place.partition} no longer has offset {offset}: the topic was made again, or has lost its "
        f"newest records; it is read again from offset {beginning}"
    )

"""All readings of a cluster, as the two consumers share them. Everything here happens in the reading thread."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from deferrable_ops import settings
from deferrable_ops.events.event import Event, kafka_event
from deferrable_ops.exceptions import KafkaRefused
from deferrable_ops.upstreams.backoff import Backoff
from deferrable_ops.upstreams.kafka.positions import Offsets, Partition, Topic
from deferrable_ops.upstreams.kafka.subscription import Batch, Reading

if TYPE_CHECKING:
    from aiokafka import ConsumerRecord

log = logging.getLogger(__name__)

Found = list[tuple[Event, list[Reading]]]
"""Events, and for each who asked for it."""


class Readings:
    """The readings of a cluster.

    :param store: stores a batch in the event loop of the waits; what it raises is tried again, for as long as it takes.
    :ivar topics: by name, those whose readings have begun.
    :ivar waiting: by topic, the readings for which it is not known where they begin.
    :ivar version: grows whenever somebody comes, leaves, or changes from one consumer to the other.
    """

    def __init__(self, store: Callable[[Batch], Awaitable[object]]) -> None:
        self._store = store
        self._changed = asyncio.Event()
        self._told: dict[Reading, Offsets] = {}
        self._most_bytes = settings.max_payload_bytes()
        self.topics: dict[str, Topic[Reading]] = {}
        self.waiting: dict[str, dict[Reading, None]] = {}
        self.version = 0

    def __bool__(self) -> bool:
        return bool(self.topics or self.waiting)

    def __iter__(self) -> Iterator[Reading]:
        for topic in self.topics.values():
            yield from topic.readings
        for waiting in self.waiting.values():
            yield from waiting

    def changed(self) -> None:
        """Note that the consumers may have something else to do."""
        self.version += 1
        self._changed.set()

    async def wait_for_change(self, seconds: float | None = None) -> None:
        """Return when something has changed, or so many seconds later."""
        self._changed.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            return

    def enter(self, reading: Reading) -> None:
        """Take a reading, whose beginning is to be found."""
        self.waiting.setdefault(reading.event.topic, {})[reading] = None
        self.changed()

    def leave(self, reading: Reading) -> None:
        """Read no more for it."""
        name = reading.event.topic
        self._told.pop(reading, None)
        waiting = self.waiting.get(name, {})
        waiting.pop(reading, None)
        if name in self.waiting and not waiting:
            del self.waiting[name]
        topic = self.topics.get(name)
        if topic is not None:
            topic.leave(reading)
            if not topic.readings:
                del self.topics[name]
        self.changed()

    def begin(self, reading: Reading, starts: dict[int, tuple[int, int]]) -> None:
        """Begin a reading that is waiting, where it has been found to begin."""
        name = reading.event.topic
        topic = self.topics.setdefault(name, Topic(name, reading.event.source))
        topic.enter(reading, starts)
        waiting = self.waiting[name]
        del waiting[reading]
        if not waiting:
            del self.waiting[name]
        self.changed()

    def fail(self, readings: Iterable[Reading], refused: KafkaRefused) -> None:
        """End readings for good."""
        for reading in list(readings):
            reading.fail(refused)
            self.leave(reading)

    def of_topic(self, name: str) -> list[Reading]:
        """Return the readings of a topic."""
        topic = self.topics.get(name)
        return [*(topic.readings if topic else ()), *self.waiting.get(name, ())]

    def find(
        self,
        topic: Topic[Reading],
        partition: Partition[Reading],
        records: Sequence[ConsumerRecord[Any, Any]],
        takes: Callable[[Reading, int], bool],
    ) -> Found:
        """Return what of a partition's records is asked for, in their order.

        :param takes: whether a reading takes the record at an offset from this consumer.
        """
        found: Found = []
        now = time.time()
        for record in records:
            event = kafka_event(
                topic.source,
                topic=topic.name,
                partition=partition.number,
                offset=record.offset,
                timestamp=record.timestamp,
                key=record.key,
                value=record.value,
                headers=record.headers,
                received_at=now,
            )
            readings = [reading for reading in topic.met(event) if takes(reading, record.offset)]
            if readings:
                found.append((self._without_too_large(event, len(record.value or b""), readings), readings))
        return found

    async def store(self, batch: Batch) -> None:
        """Store a batch, sooner or later. Until then whoever has it reads no further."""
        backoff = Backoff()
        while True:
            try:
                await self._store(batch)
            except Exception as error:
                log.warning("Events of %s cannot be stored: %r", batch.source, error)
                await asyncio.sleep(backoff.failed())
            else:
                return

    async def checkpoint(self, topic: Topic[Reading]) -> None:
        """Store how far the readings of a topic are, of those that have moved on."""
        moved = {}
        alike: dict[
            tuple[tuple[str, int], ...], Offsets
        ] = {}  # of thousands, most are live, and at one place
        for reading in topic.readings:
            offsets = topic.offsets(reading)
            if self._told.get(reading) != offsets:
                moved[reading] = alike.setdefault(tuple(offsets.items()), offsets)
        if moved:
            await self.store(Batch(topic.source, (), {one.key: offsets for one, offsets in moved.items()}))
            self._told.update((one, offsets) for one, offsets in moved.items() if one in topic.readings)

    def _without_too_large(self, event: Event, size: int, readings: Iterable[Reading]) -> Event:
        if size <= self._most_bytes:
            return event
        for reading in readings:
            reading.warn(
                f"a record of {event.source} has more than {self._most_bytes} bytes ([deferrable_ops] "
                "max_payload_bytes): it is kept without its payload, and only a match on key, headers or metadata "
                "takes it; so will others be"
            )
        return event.without_payload(size)


def batch_of(topic: Topic[Reading], found: Found, offsets: Callable[[Reading], Offsets]) -> Batch:
    """Return what is stored of what was found."""
    readings = {reading for _, asked in found for reading in asked}
    return Batch(
        topic.source,
        tuple(event for event, _ in found),
        {reading.key: offsets(reading) for reading in readings},
        tuple(tuple(reading.told for reading in asked) for _, asked in found),
    )

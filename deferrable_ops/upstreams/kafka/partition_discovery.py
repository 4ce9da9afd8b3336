"""Where readings begin, and which partitions there are."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from deferrable_ops.exceptions import KafkaRefused
from deferrable_ops.upstreams.backoff import Backoff
from deferrable_ops.upstreams.kafka.client import Cluster, partitions_of
from deferrable_ops.upstreams.kafka.positions import (
    Bounds,
    Partition,
    first_offset,
    may_be_deleted,
    search_from,
)
from deferrable_ops.upstreams.kafka.subscription import Reading
from deferrable_ops.upstreams.kafka.subscriptions import Readings

if TYPE_CHECKING:
    from aiokafka import AIOKafkaConsumer, TopicPartition

log = logging.getLogger(__name__)

_PARTITIONS_EVERY = 5.0  # seconds; what the client knows, no request


class Places:
    """Finds them for all topics, each in a task of its own: a partition without a leader holds up its topic only."""

    def __init__(self, cluster: Cluster, consumer: AIOKafkaConsumer, readings: Readings) -> None:
        self._cluster = cluster
        self._consumer = consumer
        self._readings = readings
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._news: dict[str, asyncio.Event] = {}

    def keep(self) -> None:
        """Look after each topic that is read. To be called whenever the readings have changed."""
        names = set(self._readings.topics) | set(self._readings.waiting)
        self._cluster.topics = names
        for name in names:
            if name not in self._tasks or self._tasks[name].done():
                self._news[name] = asyncio.Event()
                self._tasks[name] = asyncio.create_task(self._keep(name), name=f"deferrable-ops kafka {name}")
            elif name in self._readings.waiting:
                self._news[name].set()
        for name in set(self._tasks) - names:
            self._tasks.pop(name).cancel()

    async def close(self) -> None:
        """Look after no topic any more."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _keep(self, name: str) -> None:
        from aiokafka.errors import KafkaError

        backoff = Backoff()
        while True:
            self._news[name].clear()
            try:
                numbers = await partitions_of(self._consumer, self._cluster.settings, name)
                await self._begin(name, numbers)
                await self._begin_partitions(name, numbers)
            except KafkaRefused as refused:
                self._readings.fail(self._readings.of_topic(name), refused)
                return
            except (KafkaError, OSError, TimeoutError) as error:
                log.warning("The offsets of %s cannot be read now: %r", name, error)
                await asyncio.sleep(backoff.failed())
                continue
            except Exception:
                log.exception("The offsets of %s cannot be read; they are tried again", name)
                await asyncio.sleep(backoff.failed())
                continue
            backoff.succeeded()
            try:
                async with asyncio.timeout(_PARTITIONS_EVERY):
                    await self._news[name].wait()
            except TimeoutError:
                continue

    async def _begin(self, name: str, numbers: Collection[int]) -> None:
        """Find where the readings begin that have come."""
        waiting = list(self._readings.waiting.get(name, ()))
        if not waiting:
            return
        places = _places(name, numbers)
        searched: dict[int, dict[int, Bounds]] = {}
        for timestamp in {search_from(reading.since) for reading in waiting}:
            searched[timestamp] = await bounds_of(self._consumer, places, timestamp)
        now = time.time()
        for reading in waiting:
            if reading in self._readings.waiting.get(name, ()):  # it has not left
                bounds = searched[search_from(reading.since)]
                starts = {number: (_start(reading, number, one), one.end) for number, one in bounds.items()}
                self._readings.begin(reading, starts)
                _warn_of_deleted(reading, bounds, now)

    async def _begin_partitions(self, name: str, numbers: Collection[int]) -> None:
        """Read partitions that are new from their beginning, for everyone."""
        topic = self._readings.topics.get(name)
        new = set(numbers) - set(topic.partitions) if topic else set()
        if topic is None or not new:
            return
        bounds = await bounds_of(self._consumer, _places(name, new))
        for number in new - set(topic.partitions):
            topic.partitions[number] = Partition(number, bounds[number].beginning)
        log.info("%s has %d new partitions", name, len(new))
        self._readings.changed()


async def bounds_of(
    consumer: AIOKafkaConsumer, places: Sequence[TopicPartition], timestamp: int | None = None
) -> dict[int, Bounds]:
    """Return by number what partitions of a topic hold.

    :param timestamp: milliseconds since the epoch, to search for; None: nothing is searched for.
    """
    # The ends first: what arrives while the search goes on lies behind them.
    ends = await consumer.end_offsets(places)
    beginnings = await consumer.beginning_offsets(places)
    found = {} if timestamp is None else await consumer.offsets_for_times(dict.fromkeys(places, timestamp))
    bounds = {}
    for place in places:
        first = found.get(place)
        at = None if first is None else (first.offset, first.timestamp)
        bounds[place.partition] = Bounds(beginnings[place], ends[place], at)
    return bounds


def _places(name: str, numbers: Collection[int]) -> list[TopicPartition]:
    from aiokafka import TopicPartition

    return [TopicPartition(name, number) for number in sorted(numbers)]


def _start(reading: Reading, number: int, bounds: Bounds) -> int:
    """Return where a reading begins in a partition."""
    if reading.offsets is not None:
        place = f"{reading.event.topic}/{number}"
        wanted = reading.offsets.get(number, bounds.beginning)  # a partition that came later is new to it
        if bounds.beginning <= wanted <= bounds.end:
            return wanted
        if wanted < bounds.beginning:
            reading.warn(
                f"records of {place} from offset {wanted} to {bounds.beginning} were deleted before they were read "
                "here; keep them longer (retention.ms, retention.bytes)"
            )
            return bounds.beginning
        reading.warn(
            f"{place} no longer has offset {wanted}, at which reading was to go on: the topic was made again, or "
            "has lost its newest records; it is read again from since"
        )
    return first_offset(reading.since, bounds)


def _warn_of_deleted(reading: Reading, bounds: Mapping[int, Bounds], now: float) -> None:
    suspected = {
        number
        for number, found in bounds.items()
        if (reading.offsets is None or number not in reading.offsets)
        and may_be_deleted(reading.since, found, now)
    }
    if suspected:
        first = min(suspected)
        others = f" and of {len(suspected) - 1} other partitions" if len(suspected) > 1 else ""
        reading.warn(
            f"records of {reading.event.topic}/{first}{others} that are not older than since may be deleted already: "
            f"it begins at offset {bounds[first].beginning}; keep them longer (retention.ms, retention.bytes)"
        )
